"""The network of a bed: one bridge in a network namespace of its own. No interface of it is in the machine's namespace."""

from __future__ import annotations

import os

from tests.testbed import commands, layout


def exists(bed: layout.Layout) -> bool:
    return os.path.exists(f"/run/netns/{bed.netns}")


def create(bed: layout.Layout) -> None:
    commands.run(["ip", "netns", "add", bed.netns])
    commands.run(["ip", "-n", bed.netns, "-batch", "-"], stdin="link add br0 type bridge\nlink set br0 up\nlink set lo up\n")


def remove(bed: layout.Layout) -> None:
    if exists(bed):
        commands.run(["ip", "netns", "delete", bed.netns])


def plug(bed: layout.Layout, host: str, pid: int) -> None:
    """Give the host with the init process ``pid`` an interface eth0 with its address, on the bed's switch."""
    port = f"to-{host}"
    # a host that lost its power may leave its end for a moment
    commands.run(["ip", "-n", bed.netns, "link", "delete", port], check=False)
    commands.run(
        ["ip", "-n", bed.netns, "-batch", "-"],
        stdin=f"link add {port} type veth peer name eth0 netns {pid}\nlink set {port} master br0 up\n",
    )
    commands.run(
        ["nsenter", "-t", str(pid), "-n", "ip", "-batch", "-"],
        stdin=f"link set lo up\naddr add {layout.address(host)}/24 dev eth0\nlink set eth0 up\n",
    )
