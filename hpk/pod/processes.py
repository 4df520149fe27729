"""Processes as /proc shows them, and the one place of hpk/pod that forks."""

from __future__ import annotations

import errno
import os
import signal

from hpk import sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Signals that Python ignores and programs do not expect to be ignored.
_RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]


def children(pid: int) -> list[int]:
    """The children of all threads of ``pid``; [] when it is gone."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += [int(word) for word in file.read().split()]
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}/task") and not os.path.exists(f"/proc/{pid}/task/{pid}/children"):
            return _children_by_parent(pid)  # a kernel without CONFIG_PROC_CHILDREN
    except (ProcessLookupError, PermissionError):
        pass  # it has just ended
    return found


def _children_by_parent(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == pid:
                        found.append(int(name))
            except (OSError, ValueError, IndexError):
                continue  # it has just ended
    return found


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, nearest first."""
    found = children(pid)
    for child in found:
        found += children(child)  # the list grows while it is walked
    return found


def program(runtime: int) -> int | None:
    """The process 1 of the container that the runtime process ``runtime`` holds, once it executes the container's own program.

    Before that it is still a copy of the runtime.
    """
    for child in children(runtime):
        try:
            with open(f"/proc/{child}/status", "rb") as file:
                inner = next((line.split()[1:] for line in file if line.startswith(b"NSpid:")), [])
            if len(inner) < 2 or inner[-1] != b"1":
                continue
            if _executable(child) != _executable(runtime):
                return child
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except PermissionError:  # a set-uid runtime: its name has to do
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read()


def environment(pid: int) -> dict[str, str]:
    """The environment with which ``pid`` was executed; {} when it is gone."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if b"=" in entry]
    except OSError:
        return {}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def has_arguments(pid: int) -> bool:
    """Whether ``pid`` has its argument list yet, which exec(2) puts in place after the executable; a busy node may take its time."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return bool(file.read(1))
    except OSError:
        return True  # gone: no reason to look longer


def fork_exec(
    argv: list[str],
    env: dict[str, str],
    stdio: tuple[int, int, int],
    prepare: Callable[[dict[str, str]], None],
    tty: bool = False,
    inner_pids: bool = False,
    guarded: bool = False,
    deaf: bool = False,
) -> tuple[int, str]:
    """Start ``argv`` in a session of its own that dies with this process. Returns (pid, problem).

    ``deaf``: polite signals are ignored, since scancel(1) sends them to all processes of a job. ``guarded``: the caller has a Guard
    see to that, so that the process can first be stopped and its children be found.

    ``prepare(env)`` runs in the child, may change its environment, and enters namespaces; ``inner_pids``: one of them is a PID
    namespace, whose members are children only, so the child forks once more and passes the exit status on. What prepare()
    raises is the problem, as is a program that cannot be executed; the child then ends with 127.
    """
    parent = os.getpid()
    problem_read, problem_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for target, fd in enumerate(stdio):
                os.dup2(fd, target)
            if tty:
                import fcntl
                import termios

                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            for number in _RESTORED:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if deaf else signal.SIG_DFL)
            prepare(env)
            if inner_pids:
                _fork_again(problem_write)
            elif not guarded:
                sandbox.die_with_parent(signal.SIGKILL, parent)
            path = _find(argv[0], env.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
            os.execve(path, argv, env)  # noqa: S606 - argv lists only
        except BaseException as error:  # nothing may escape from the child
            text = str(error) if isinstance(error, (OSError, LookupError)) else f"{type(error).__name__}: {error}"
            os.write(problem_write, text.encode()[:4000])
        finally:
            os._exit(127)
    os.close(problem_write)
    # closed by execve(), so this returns when the program has begun, after some milliseconds
    problem = os.read(problem_read, 4000).decode(errors="replace")
    os.close(problem_read)
    return pid, problem


def _fork_again(problem_write: int) -> None:
    """Go on in a child, which is a member of the PID namespace; end with its exit status here."""
    child = os.fork()
    if child == 0:
        sandbox.prctl(sandbox.PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    sandbox.prctl(sandbox.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(problem_write)
    _, status = os.waitpid(child, 0)
    os._exit(exit_code(status))


def _find(name: str, path: str) -> str:
    if "/" in name:
        return name
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    raise LookupError(f'exec: "{name}": executable file not found in $PATH')


def exit_code(status: int) -> int:
    """A wait status as an exit code, 128 + signal for a signal."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


#: The guard: reads "+ PID" and "- PID" lines, and when the supervisor's end of the pipe closes, kills what is still listed and
#: removes the folders in its arguments. PR_SET_PDEATHSIG cannot do that for the runtime: it belongs to a thread, and Go programs
#: execute the next program from any of theirs.
_GUARD = """trap '' TERM INT HUP
tree() {
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$child"; done
    echo "$1"
}
alive=
while read -r what pid; do
    if [ "$what" = + ]; then
        alive="$alive $pid"
    else
        left=
        for one in $alive; do [ "$one" = "$pid" ] || left="$left $one"; done
        alive=$left
    fi
done
[ -z "$alive" ] || kill -STOP $alive 2>/dev/null
victims=$(for one in $alive; do tree "$one"; done)
[ -z "$victims" ] || kill -9 $victims 2>/dev/null
for folder; do
    for _ in 1 2 3 4 5; do  # what was killed may still be on its way out
        [ -e "$folder" ] || break
        { chmod -R u+rwx "$folder"; rm -rf -- "$folder" || sleep 0.2; } 2>/dev/null
    done
done"""


class Guard:
    """A shell that outlives this process by the moment it takes to end its containers, however this process ends."""

    def __init__(self, folders: list[str]) -> None:
        self._folders = folders
        self._pids: set[int] = set()
        self.pid = 0
        self._pipe = -1
        self._begin()

    def _begin(self) -> None:
        read, self._pipe = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                for target, fd in enumerate((read, null, null)):
                    os.dup2(fd, target)
                os.execv("/bin/sh", ["/bin/sh", "-c", _GUARD, "hpk-guard", *self._folders])  # noqa: S606
            finally:
                os._exit(127)
        os.close(read)
        os.close(null)
        for pid in self._pids:
            self._tell("+", pid)

    def _tell(self, what: str, pid: int) -> None:
        try:
            os.write(self._pipe, f"{what} {pid}\n".encode())
        except OSError:
            pass  # it was killed: exited() brings a new one

    def add(self, pid: int) -> None:
        self._pids.add(pid)
        self._tell("+", pid)

    def remove(self, pid: int) -> None:
        if pid in self._pids:
            self._pids.discard(pid)
            self._tell("-", pid)

    def exited(self, pid: int) -> bool:
        """Tell the end of process ``pid``; when it was the guard, there is a new one. False: it is none of ours."""
        if pid != self.pid:
            return False
        os.close(self._pipe)
        self._begin()
        return True


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone is no error."""
    try:
        os.kill(pid, number)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise


def kill_descendants() -> None:
    """Kill and reap everything below this process, orphans included (PR_SET_CHILD_SUBREAPER)."""
    while True:
        for pid in descendants(os.getpid()):
            kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
