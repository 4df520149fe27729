"""One virtual host: its namespaces, its disk, its network plug; entering it and cutting its power."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence

from tests.testbed import cgroups, commands, layout, switch, users

_PYTHON = "/usr/bin/python3"
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'
"""sh: join the cgroups given before ``--``, become the command after it."""


@dataclasses.dataclass(frozen=True)
class Host:
    bed: layout.Layout
    name: str

    @property
    def disk(self) -> str:
        return self.bed.host(self.name)

    @property
    def _pid_file(self) -> str:
        return f"{self.disk}/init.pid"

    @property
    def pid(self) -> int | None:
        """Process id of the host's init on the machine; None when the host is off."""
        text = commands.read(self._pid_file)
        # a process id alone may by now be another process's
        if text and int(text) in _members(self.bed.cgroup(self.name)):
            return int(text)
        return None

    @property
    def up(self) -> bool:
        return self.pid is not None

    def start(self) -> None:
        """Switch the host on: namespaces, mounts, network. Services come after (slurm.py)."""
        os.makedirs(self.disk, exist_ok=True)
        for folder, owner in _DISK.items():
            users.folder(f"{self.disk}/{folder}", owner)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._pid_file)
        spec_file = f"{self.disk}/init.json"
        commands.write(spec_file, json.dumps(self._spec(), indent=1))
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "host_init.py")
        commands.run([_PYTHON, "-I", "-S", script, spec_file], timeout=20)
        switch.plug(self.bed, self.name, int(commands.read(self._pid_file)))

    def _spec(self) -> dict[str, object]:
        munge, slurm = pwd.getpwnam("munge"), pwd.getpwnam("slurm")
        homes = [[f"/run/user/{entry.pw_uid}", entry.pw_uid, entry.pw_gid, 0o700] for entry in map(pwd.getpwnam, layout.USERS)]
        etc = self.bed.etc
        return {
            "hostname": self.name,
            "pid_file": self._pid_file,
            "log": f"{self.disk}/init.log",
            # folder of each hierarchy that the host's processes belong to
            "cgroups": cgroups.create(self.bed.cgroup(self.name)),
            # mount point to controllers, mounted again inside the cgroup namespace
            "hierarchies": cgroups.hierarchies(),
            "tmpfs": [["/run", "755"], ["/tmp", "1777"], ["/var/tmp", "1777"], ["/dev/shm", "1777"]],
            # made after the tmpfs, before the binds: path, uid, gid, mode
            "folders": [["/run/munge", munge.pw_uid, munge.pw_gid, 0o755], ["/run/slurm", slurm.pw_uid, slurm.pw_gid, 0o755], *homes],
            # source on the machine, target in the host, read-only
            "binds": [
                [self.bed.home, "/home", False],
                *([layout.TREE, f"/home/{user}/hpk", True] for user in layout.USERS),
                [layout.TREE, layout.SITE_TREE, True],
                [f"{self.bed.state}/bin", layout.SITE_BIN, True],
                *([f"{etc}/{name}", f"/etc/{name}", True] for name in sorted(os.listdir(etc))),
                *([f"{self.disk}/{folder}", target, False] for folder, target in _DISK_TARGETS.items()),
            ],
        }

    def enter(self, argv: Sequence[str], *, user: str = "root", env: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs ``argv`` on this host as ``user``, in the user's home, with no environment but ``env``.

        Raises TestbedError when the host is off.
        """
        pid = self.pid
        if pid is None:
            raise commands.TestbedError(f"host {self.name} is off: python -m tests.testbed start-host {self.name}")
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **(env or {})}
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        home = {"root": "/"}.get(user) or pwd.getpwnam(user).pw_dir
        return [
            *("/bin/sh", "-c", _ENTER, "enter", *cgroups.paths(self.bed.cgroup(self.name)), "--"),
            *("nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--", *become),
            *("env", "-i", "-C", home if os.path.isdir(home) or user in layout.USERS else "/"),
            *(f"{name}={value}" for name, value in variables.items()),
            *argv,
        ]

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return commands.run(self.enter(argv, user=user, env=env), stdin=stdin, timeout=timeout, check=check)

    def kill(self) -> None:
        """Cut the power: every process of the host dies at once, /tmp and /run with them; the disk stays."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        self.clean()
        if pid is not None:
            # its namespaces, and with them the mounts and the network, end when it does
            commands.wait_until(f"end of host {self.name}", lambda: not os.path.exists(f"/proc/{pid}"), 10, pause=0.01)

    def clean(self) -> None:
        """Remove what a host without power may leave: processes that were entering it, its cgroups, its pid file."""
        cgroups.remove(self.bed.cgroup(self.name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._pid_file)


#: Folders on a host's disk and who owns them.
_DISK = {
    "slurmd": "root",
    "slurmctld": "slurm",
    "log": "slurm",
    "mysql": "mysql",
    "registry": "docker-registry",
}
#: Where the host has them.
_DISK_TARGETS = {
    "slurmd": "/var/spool/slurmd",
    "slurmctld": "/var/spool/slurmctld",
    "log": "/var/log/slurm",
    "mysql": "/var/lib/mysql",
    "registry": "/var/lib/docker-registry",
}


def _members(cgroup: str) -> set[int]:
    """Processes directly in a host's top cgroup (of the hierarchy with the memory controller)."""
    for top, controllers in cgroups.hierarchies().items():
        if "memory" in controllers.split(","):
            return {int(pid) for pid in commands.read(f"{top}/{cgroup}/cgroup.procs").split()}
    return set()
