"""Control groups of the hosts.

Each host has a folder of its own in every cgroup v1 hierarchy and makes its cgroup namespace there, so that its Slurm daemon sees
the folder as the root: jobs of different hosts stay apart, and memory limits end in real OOM kills.
"""

from __future__ import annotations

import contextlib
import os
import signal

from tests.testbed import commands

_ROOT = "/sys/fs/cgroup"


def hierarchies() -> dict[str, str]:
    """Mount point to mount options (the controllers) of each v1 hierarchy. Raises TestbedError when the machine has cgroup v2 only."""
    found = {}
    for line in commands.read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _source, options = right.split(" ", 2)
        mount_point = left.split(" ")[4]
        if kind == "cgroup" and mount_point.startswith(_ROOT + "/"):
            controllers = [option for option in options.split(",") if option not in ("rw", "ro") and not option.startswith("name=")]
            if controllers:
                found[mount_point] = ",".join(controllers)
    if not any("memory" in controllers.split(",") for controllers in found.values()):
        raise commands.TestbedError(
            f"no cgroup v1 hierarchy with the memory controller below {_ROOT}: the test bed needs cgroup v1"
            " (kernel command line systemd.unified_cgroup_hierarchy=0)"
        )
    return found


def paths(name: str) -> list[str]:
    """The folder ``name`` in each hierarchy."""
    return [f"{top}/{name}" for top in hierarchies()]


def create(name: str) -> list[str]:
    """Make the folder ``name`` in each hierarchy, empty of what an earlier boot left, and return the paths."""
    remove(name)
    for path in paths(name):
        os.makedirs(path)
        for file in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset accepts no process before it has these
            if os.path.exists(f"{path}/{file}"):
                with open(f"{path}/{file}", "w") as out:
                    out.write(commands.read(f"{os.path.dirname(path)}/{file}"))
    return paths(name)


def _folders(name: str) -> list[str]:
    """All cgroups of a host, deepest first."""
    return [folder for top in paths(name) for folder, _, _ in os.walk(top, topdown=False)]


def processes(name: str) -> set[int]:
    """Processes of a host, by their ids on the machine."""
    found: set[int] = set()
    for folder in _folders(name):
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in commands.read(f"{folder}/cgroup.procs").split())
    return found


def kill(name: str, timeout: float = 10) -> None:
    """Kill every process of a host and wait for their end."""

    def gone() -> bool:
        left = processes(name)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    commands.wait_until(f"end of the processes in cgroup {name}", gone, timeout, pause=0.02)


def remove(name: str) -> None:
    """Kill what is left in a host's cgroups and remove them."""
    kill(name)
    for folder in _folders(name):
        with contextlib.suppress(FileNotFoundError):
            _rmdir(folder)


def _rmdir(folder: str) -> None:
    def removed() -> bool:
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # busy for a moment after its last process
        return True

    commands.wait_until(f"removal of {folder}", removed, 5, pause=0.02)


def leftovers(prefix: str) -> set[str]:
    """Names of the hosts' folders that start with ``prefix``."""
    return {name for top in hierarchies() for name in os.listdir(top) if name.startswith(prefix)}
