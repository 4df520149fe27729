"""Names, addresses and paths of a bed. Nothing here touches the disk."""

from __future__ import annotations

import dataclasses
import os
import re

from tests.testbed import commands

#: What costs time to make and may be kept for ever: images, the private Apptainer's packages.
CACHE = "/var/cache/hpk/testbed"
#: Where the static binaries of ``hpk image build`` are kept, kubectl among them.
BINARIES = "/var/cache/hpk/bin"
#: A control-plane image that the bed's "administrator" offers to all users, when it exists.
CONTROL_PLANE_IMAGE = "/var/cache/hpk/control-plane.sif"
#: Prefix of the private Apptainer.
APPTAINER = "/opt/apptainer"
#: Root of the repository, as found on this machine.
TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: Where the bed's hosts have the repository, read-only, and the commands of the site.
SITE_TREE = "/opt/hpk/src"
SITE_BIN = "/opt/hpk/bin"

USERS = ("alice", "bob")
LOGIN = "login"
REGISTRY = "registry:5000"
#: The same for those who log in, see ``registry``.
PRIVATE_REGISTRY = "registry:5001"
MAX_NODES = 100


def address(host: str) -> str:
    """IPv4 address of a host: login is 10.77.0.1, c1 is 10.77.0.11."""
    return "10.77.0.1" if host == LOGIN else f"10.77.0.{10 + int(host[1:])}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """One bed's names and paths."""

    name: str

    @classmethod
    def default(cls) -> Layout:
        """The bed that $HPK_TESTBED names, or ``main``. Raises TestbedError for a name that cannot be used."""
        name = os.environ.get("HPK_TESTBED") or "main"
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,19}", name):
            raise commands.TestbedError(f"HPK_TESTBED: {name!r} is not a name of at most 20 of a-z, 0-9 and -")
        return cls(name)

    @property
    def state(self) -> str:
        return f"/var/lib/hpk-testbed/{self.name}"

    @property
    def netns(self) -> str:
        """Name of the network namespace with the switch (ip netns)."""
        return f"hpk-testbed-{self.name}"

    @property
    def home(self) -> str:
        return f"{self.state}/home"

    @property
    def etc(self) -> str:
        """Folders that lie over parts of the hosts' /etc: slurm, munge, hpk, profile.d, ..."""
        return f"{self.state}/etc"

    def host(self, host: str) -> str:
        """Disk of one host: spool, logs, database. Survives a power failure."""
        return f"{self.state}/hosts/{host}"

    def cgroup(self, host: str) -> str:
        """Name of a host's folder at the top of each cgroup hierarchy."""
        return f"{self.netns}-{host}"
