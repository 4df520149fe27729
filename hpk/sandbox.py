"""The Pod's namespaces, made and entered by an ordinary user with system calls alone.

Standard library only, imports nothing of hpk, so that it can be tried by hand on a compute node::

    python3 -I -S hpk/sandbox.py [--hostname NAME] [--user UID] [--group GID] [--] COMMAND...

create() makes one user namespace in which the user is root, and the namespaces that it owns. They are held by open file
descriptors of the caller, so no process has to sit in them. enter() is called in a forked child and joins them; where the
container runs as another id than 0, enter_user() makes a child user namespace that maps this id to the user.
join() is called in a forked child too, and enters the namespaces of a running container's process.

Why forked children only: setns(2) and unshare(2) of a user namespace need a single-threaded process and change it for good.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

#: Flag of each namespace, by its name in /proc/PID/ns. The user namespace comes first: joining it gives the right to join the rest.
FLAGS = {
    "user": CLONE_NEWUSER,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
    "pid": CLONE_NEWPID,
    "mnt": CLONE_NEWNS,
}

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """A namespace cannot be made or entered. ``hint`` says what the user or the site can do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.hint = hint


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flag: int) -> None:
    """setns(2). Raises OSError."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flag)), "setns")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero), "prctl")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2). Raises OSError."""
    encoded = data.encode() if data else None
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), encoded), f"mount {target}")


def die_with_parent(signal_number: int, parent: int) -> None:
    """Ask the kernel to send ``signal_number`` to this process when its parent ends, and end now if ``parent`` is gone already.

    To be called after the last change of namespaces or ids: such a change clears the setting (PR_SET_PDEATHSIG(2const)).
    """
    prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(137)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _map_ids(inside_uid: int, outside_uid: int, inside_gid: int, outside_gid: int) -> None:
    # Without privileges in the parent namespace a gid_map may only be written after setgroups(2) has been given up.
    try:
        _write("/proc/self/setgroups", "deny")
    except FileNotFoundError:
        pass  # kernels before 3.19 have no such file and no such rule
    _write("/proc/self/uid_map", f"{inside_uid} {outside_uid} 1")
    _write("/proc/self/gid_map", f"{inside_gid} {outside_gid} 1")


def _advice(error: OSError) -> str:
    """What may stand behind a refused user namespace."""
    if error.errno == errno.ENOSPC:
        return "the limit user.max_user_namespaces is reached or 0: the site can raise it (sysctl)"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the site forbids user namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    return "the kernel has no user namespaces"


class Sandbox:
    """Namespaces held open: a file descriptor for each name in FLAGS."""

    def __init__(self, fds: dict[str, int] | None = None) -> None:
        self.fds = fds or {}

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}


def create(kinds: list[str], hostname: str = "") -> Sandbox:
    """Make the namespaces ``kinds`` ("user" must be one of them, or the list empty) and return them.

    ``hostname`` is set in the new UTS namespace. Raises SandboxError when the kernel or the site does not allow it.
    """
    if not kinds:
        return Sandbox()
    flags = 0
    for kind in kinds:
        flags |= FLAGS[kind]
    uid, gid = os.geteuid(), os.getegid()
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ready_read)
            os.close(done_write)
            try:
                unshare(flags)
                _map_ids(0, uid, 0, gid)
                if "mnt" in kinds:
                    mount("none", "/", "none", MS_REC | MS_PRIVATE)
                if hostname and "uts" in kinds:
                    name = os.fsencode(hostname)
                    _check(_libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")
                os.write(ready_write, b"0")
                os.read(done_read, 1)  # until the parent has the descriptors
                code = 0
            except OSError as error:
                os.write(ready_write, f"{error.errno} {error.strerror}".encode())
        finally:
            os._exit(code)
    fds: dict[str, int] = {}
    try:
        os.close(ready_write)
        os.close(done_read)
        answer = os.read(ready_read, 1000).decode(errors="replace")
        if answer != "0":
            number, _, text = answer.partition(" ")
            problem = OSError(int(number or 0), text or "the child died")
            raise SandboxError(f"cannot make the Pod's namespaces on this node: {text}", _advice(problem))
        for kind in sorted(kinds, key=list(FLAGS).index):
            fds[kind] = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    finally:
        os.close(ready_read)
        os.close(done_write)
        os.waitpid(pid, 0)
    return Sandbox(fds)


def enter(sandbox: Sandbox) -> None:
    """Move the calling process, a forked child, into ``sandbox``, where it is root. Raises OSError."""
    if not sandbox.fds:
        return
    working_dir = os.getcwd()
    for kind, fd in sandbox.fds.items():
        setns(fd, FLAGS[kind])
    os.chdir(working_dir)  # joining a mount namespace leaves one at its root


def enter_user(uid: int, gid: int) -> None:
    """Become ``uid`` and ``gid``, after enter(): both are the user's own ids outside. Raises OSError."""
    if uid != 0 or gid != 0:
        unshare(CLONE_NEWUSER)
        _map_ids(uid, 0, gid, 0)


def join(pid: int, working_dir: str = "/") -> None:
    """Move the calling process, a forked child in the container's sandbox, into the namespaces and the root of process ``pid``.

    The PID namespace is that of children only: fork again before executing something. Raises OSError (ESRCH, ENOENT: the
    process is gone).
    """
    base = f"/proc/{pid}"
    fds = []
    for kind in FLAGS:
        try:
            if os.stat(f"{base}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino:
                continue  # joining one's own user namespace is an error, and the others need no joining
            fds.append((os.open(f"{base}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), kind))
        except FileNotFoundError:
            if not os.path.exists(base):
                raise
    root = -1
    for fd, kind in fds:
        if kind != "user" and root < 0:
            # not before, as a FUSE file system lets in members of its user namespace only
            root = os.open(f"{base}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        setns(fd, FLAGS[kind])
        os.close(fd)
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    os.chdir(working_dir)


def main(argv: list[str]) -> int:
    """Run a command in a sandbox of its own, for trying things by hand."""
    hostname, uid, gid = "sandbox", 0, 0
    while argv and argv[0].startswith("--"):
        option = argv.pop(0)
        if option == "--":
            break
        if option not in ("--hostname", "--user", "--group") or not argv:
            sys.stderr.write("usage: sandbox.py [--hostname NAME] [--user UID] [--group GID] [--] COMMAND...\n")
            return 2
        value = argv.pop(0)
        if option == "--hostname":
            hostname = value
        elif not value.isdigit():
            sys.stderr.write(f"sandbox.py: {option} {value}: expected a number\n")
            return 2
        elif option == "--user":
            uid = int(value)
        else:
            gid = int(value)
    try:
        sandbox = create(["user", "ipc", "uts"], hostname)
    except SandboxError as error:
        sys.stderr.write(f"sandbox.py: {error}\n")
        return 1
    enter(sandbox)
    enter_user(uid, gid)
    command = argv or [os.environ.get("SHELL", "/bin/sh")]
    try:
        os.execvp(command[0], command)  # noqa: S606 - the very purpose
    except OSError as error:
        sys.stderr.write(f"sandbox.py: {command[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
