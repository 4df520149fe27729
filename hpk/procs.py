"""The only place of HPK that starts processes (the in-job supervisor has its own, standard library only).

Always an argv list, never a shell string. The environment is given or the caller's own; output is captured as text.
A failure carries a line that can be pasted into a shell.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence

from hpk import errors

#: Longest piece of a program's own words that goes into one of our messages.
MAX_OUTPUT = 2048


@dataclasses.dataclass(frozen=True)
class Completed:
    """A program that ended: ``returncode`` is negative for a signal, as in subprocess."""

    argv: list[str]
    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Completed:
        """Return self, or raise ProcessError when the program failed."""
        if self.returncode != 0:
            raise failure(self.argv, self.returncode, self.stdout, self.stderr)
        return self


def failure(argv: Sequence[str], returncode: int | None, stdout: str = "", stderr: str = "") -> errors.ProcessError:
    """Describe a failed program: how it ended, its last words, and a command line to try again by hand."""
    name = os.path.basename(argv[0])
    if returncode is None:
        how = "did not answer in time"
    elif returncode < 0:
        how = f"was killed by {signal.Signals(-returncode).name}"
    else:
        how = f"failed with exit code {returncode}"
    words = " ".join((stderr.strip() or stdout.strip()).split())[-MAX_OUTPUT:]
    return errors.ProcessError(
        f"{name} {how}" + (f": {words}" if words else ""),
        argv=list(argv),
        returncode=returncode,
        stdout=stdout,
        stderr=stderr,
        hint=f"command: {shlex.join(argv)[:MAX_OUTPUT]}",
    )


def find(*names: str, hint: str | None = None) -> str:
    """Return the path of the first of ``names`` that is on PATH; raise MissingTool when none is."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    raise errors.MissingTool(
        f"{' or '.join(names)} not found on PATH", hint=hint or "install it, load its module, or add its folder to PATH"
    )


def container_runtime() -> str:
    """Return the path of apptainer or singularity."""
    return find(
        "apptainer",
        "singularity",
        hint="load the site's module (for example `module load apptainer`) or ask the administrators for Apptainer",
    )


def run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float | None = None,
) -> Completed:
    """Run ``argv`` to its end and return what it said.

    ``timeout`` in seconds; when it passes the program is killed and ProcessError raised.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env=env,
            cwd=cwd,
            timeout=timeout,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as exc:
        raise errors.MissingTool(f"{argv[0]} not found on PATH", hint="install it, load its module, or add its folder to PATH") from exc
    except subprocess.TimeoutExpired as exc:
        raise failure(argv, None) from exc
    return Completed(list(argv), done.returncode, done.stdout, done.stderr)


async def arun(
    argv: Sequence[str],
    *,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float | None = None,
) -> Completed:
    """run() for asyncio. A cancelled call kills the program."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=cwd,
        )
    except FileNotFoundError as exc:
        raise errors.MissingTool(f"{argv[0]} not found on PATH", hint="install it, load its module, or add its folder to PATH") from exc
    try:
        out, err = await asyncio.wait_for(process.communicate(None if input is None else input.encode()), timeout)
    except BaseException as exc:
        if process.returncode is None:
            try:
                process.kill()
            except ProcessLookupError:
                pass  # it ended just now
            await process.wait()
        if isinstance(exc, (asyncio.TimeoutError, TimeoutError)):
            raise failure(argv, None) from exc
        raise
    assert process.returncode is not None
    return Completed(list(argv), process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


class Child:
    """A long-running program that spawn() started. It gets a signal from the kernel when this process dies, in whichever way."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int) -> None:
        self._process = process
        self._lifeline = lifeline

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def send_signal(self, signum: signal.Signals) -> None:
        """Signal the program; nothing happens when it has ended."""
        if self._process.returncode is None:
            try:
                self._process.send_signal(signum)
            except ProcessLookupError:
                pass  # it ended just now

    async def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        code = await self._process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return code


async def spawn(
    argv: Sequence[str],
    *,
    output: str,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    orphan_signal: signal.Signals = signal.SIGTERM,
) -> Child:
    """Start a program that must not outlive us, in a session of its own, with both outputs appended to file ``output``.

    PR_SET_PDEATHSIG would not do: the kernel forgets it when the program enters a user namespace, as Apptainer does. So the
    program inherits the reading end of a pipe that asks for ``orphan_signal`` to its process when something happens there
    (fcntl(2): F_SETOWN, F_SETSIG, O_ASYNC), and all that ever happens is that the writing end closes with us. Raises MissingTool.
    """
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            pass_fds=[reader],
        )
        try:  # these belong to the open file, which the program shares: nothing of ours need run between fork and exec
            fcntl.fcntl(reader, fcntl.F_SETOWN, process.pid)
            fcntl.fcntl(reader, fcntl.F_SETSIG, orphan_signal)
            fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
        except ProcessLookupError:
            pass  # it has ended already
    except BaseException as exc:
        os.close(writer)
        if isinstance(exc, FileNotFoundError):
            raise errors.MissingTool(f"{argv[0]} not found", hint="install it, load its module, or add its folder to PATH") from exc
        if isinstance(exc, PermissionError):
            raise errors.MissingTool(f"{argv[0]} cannot be executed: {exc.strerror}") from exc
        raise
    finally:
        os.close(fd)
        os.close(reader)
    return Child(process, writer)


def adopt_orphans() -> None:
    """Become the parent of every process below us whose own parent dies, so that end_orphans() finds it (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def end_orphans(known: Collection[int]) -> list[int]:
    """Kill what is left of programs of spawn() that have ended, and return its pids.

    Apptainer's squashfuse, for one, survives its parent's SIGKILL. Such a process is a child of ours now, in the session of a
    program that is not among ``known``, the pids of those that run.
    """
    me, session = os.getpid(), os.getsid(0)
    ended = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                _, parent, _, sid = file.read().rpartition(")")[2].split()[:4]
            if int(parent) == me and int(sid) not in (session, int(name), *known):
                os.kill(int(name), signal.SIGKILL)
                os.waitpid(int(name), 0)
                ended.append(int(name))
        except (OSError, ValueError):
            continue  # it ended by itself
    return ended
