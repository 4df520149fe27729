"""What the machine needs: Debian packages, Apptainer, devices. Quick when all is there."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from tests.testbed import apptainer, commands

#: For a user's cluster on this machine: Slurm, Apptainer's helpers, hpk itself and `make demo`.
DEMO = (
    *("slurmctld", "slurmd", "slurm-client", "munge"),
    *("squashfuse", "fuse-overlayfs", "squashfs-tools", "uidmap", "patchelf", "libseccomp2", "libsubid4"),
    *("python3", "python3-venv", "busybox-static", "ca-certificates", "util-linux", "coreutils", "passwd"),
)
#: For the test bed too: accounting, the registry and making of images, namespaces and networks, the linters.
BED = (
    *DEMO,
    *("slurmdbd", "mariadb-server", "docker-registry", "skopeo", "umoci", "mmdebstrap"),
    *("iproute2", "nftables", "slirp4netns", "iputils-ping", "tcpdump", "procps", "curl", "shellcheck"),
)
_POLICY = "/usr/sbin/policy-rc.d"


def ensure(names: Sequence[str] = BED) -> None:
    """Install what is missing of ``names``, and Apptainer. Raises TestbedError when apt fails."""
    missing = _missing(names)
    if missing:
        commands.say(f"installing {' '.join(missing)}")
        commands.run(["apt-get", "update", "-q"], timeout=600)
        _install(missing)
    apptainer.ensure()
    _devices()


def _missing(names: Sequence[str]) -> list[str]:
    query = commands.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *names], check=False).stdout
    there = {line.split()[0] for line in query.splitlines() if line.split()[1:2] == ["ii"]}
    return [package for package in names if package not in there]


def _install(names: list[str]) -> None:
    """apt-get install, with the services' start forbidden by a policy-rc.d."""
    own_policy = not os.path.exists(_POLICY)
    if own_policy:
        commands.write(_POLICY, "#!/bin/sh\nexit 101\n", 0o755)
    try:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        commands.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *names], timeout=1800, env=env)
    finally:
        if own_policy:
            os.unlink(_POLICY)


def _devices() -> None:
    """Give /dev/fuse and /dev/net/tun the mode that udev gives them on ordinary machines."""
    for path, device in (("/dev/fuse", os.makedev(10, 229)), ("/dev/net/tun", os.makedev(10, 200))):
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mknod(path, stat.S_IFCHR | 0o666, device)
        os.chmod(path, 0o666)
