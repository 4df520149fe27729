"""PID 1 of a virtual host. Run as a script, with the path of a JSON file: see ``host.Host._spec`` for its fields.

First run: a child joins the host's cgroups and becomes this script again in new namespaces by unshare(1). There it mounts what makes
the host, writes its process id (as the machine sees it) to the pid file and then only reaps orphans, as any init. The first run ends
when that is done. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import stat
import sys
import time
from typing import Any, NoReturn

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x20, 0x1000, 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    encoded = [None if value is None else value.encode() for value in (source, target, kind)]
    result = _libc.mount(*encoded, ctypes.c_ulong(flags), None if data is None else data.encode())
    _check(result, f"mount {kind or source} on {target}")


def bind(fd: int, target: str, read_only: bool) -> None:
    """Bind the opened file or folder ``fd`` on ``target``, which is made when it is missing."""
    if not os.path.exists(target):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.makedirs(target, exist_ok=True)  # other hosts boot at the same time, on the same disk
        else:
            with open(target, "a"):
                pass
    target = os.path.realpath(target)
    mount(f"/proc/self/fd/{fd}", target, flags=MS_BIND)
    if read_only:
        mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def boot(spec: dict[str, Any]) -> None:
    socket.sethostname(spec["hostname"])
    mount(None, "/", flags=MS_REC | MS_PRIVATE)
    # Opened before anything is covered: a source may lie below /home or /tmp of the machine.
    sources = [(os.open(source, os.O_PATH), target, read_only) for source, target, read_only in spec["binds"]]
    for target, mode in spec["tmpfs"]:
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
    for path, uid, gid, mode in spec["folders"]:
        os.makedirs(path, exist_ok=True)
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    for fd, target, read_only in sources:
        bind(fd, target, read_only)
        os.close(fd)
    own_pid = os.readlink("/proc/self")  # /proc is still the machine's
    mount("proc", "/proc", "proc")
    for mount_point, controllers in spec["hierarchies"].items():
        _check(_libc.umount2(mount_point.encode(), 0), f"umount {mount_point}")
        mount("cgroup", mount_point, "cgroup", data=controllers)
    with open(spec["pid_file"] + ".new", "w") as file:
        file.write(own_pid)
    os.replace(spec["pid_file"] + ".new", spec["pid_file"])


def reap() -> NoReturn:
    """Reap orphans for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            pass


def launch(spec: dict[str, Any]) -> int:
    """Start the host in new namespaces; return 0 once it has booted, or 1 with its last words on stderr."""
    child = os.fork()
    if child == 0:
        os.setsid()
        null, log = os.open(os.devnull, os.O_RDONLY), os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for fd, source in enumerate((null, log, log)):
            os.dup2(source, fd)
        for path in spec["cgroups"]:
            with open(f"{path}/cgroup.procs", "w") as file:
                file.write("0")
        unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--cgroup", "--fork", "--kill-child"]
        os.execvp("unshare", [*unshare, sys.executable, "-I", "-S", os.path.abspath(__file__), sys.argv[1], "boot"])
    while not os.path.exists(spec["pid_file"]):
        if os.waitpid(child, os.WNOHANG)[0] != 0:
            with open(spec["log"]) as file:
                sys.stderr.write(file.read())
            return 1
        time.sleep(0.005)
    return 0


def main() -> int:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    if sys.argv[2:] == ["boot"]:
        boot(spec)
        reap()
    return launch(spec)


sys.exit(main())
