"""Commands inside running containers, for probes and lifecycle hooks: like ``kubectl exec``, without the stream."""

from __future__ import annotations

import os
import signal

from hpk import sandbox
from hpk.pod import loop, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Output that is kept (the kubelet's limit for probes), in bytes. The rest is read and dropped.
MAX_OUTPUT = 10 * 1024
#: Exit code told for a command that took too long.
TIMED_OUT = -1


class Execs:
    """``done`` of each command is called once with (exit code, output); the exit code is TIMED_OUT after a time-out."""

    def __init__(self, looper: loop.Loop, box: sandbox.Sandbox) -> None:
        self._loop = looper
        self._running: dict[int, _Exec] = {}
        self._box = box

    def run(
        self,
        container: int | None,
        argv: list[str],
        env: dict[str, str],
        working_dir: str,
        timeout: float | None,
        done: Callable[[int, str], None],
    ) -> None:
        """Run ``argv`` in the container whose process 1 is ``container`` (None: beside us, where no namespaces are used)."""

        def prepare(_env: dict[str, str]) -> None:
            if container is not None:
                sandbox.enter(self._box)  # the container's own user namespace has no say over the Pod's
                sandbox.join(container, working_dir)
                sandbox.prctl(sandbox.PR_SET_NO_NEW_PRIVS, 1)

        read, write = os.pipe()
        os.set_blocking(read, False)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            pid, problem = processes.fork_exec(argv, env, (null, write, write), prepare, inner_pids=container is not None)
        finally:
            os.close(write)
            os.close(null)
        command = _Exec(read, done)
        command.output = problem.encode()
        self._running[pid] = command
        self._loop.watch(read, loop.READ, lambda _: self._read(command))
        if timeout is not None:
            command.timer = self._loop.later(timeout, lambda: self._time_out(pid))

    def exited(self, pid: int, status: int) -> bool:
        """Tell the end of process ``pid``. False: it is none of ours."""
        command = self._running.pop(pid, None)
        if command is None:
            return False
        self._read(command)
        if command.fd >= 0:
            self._loop.forget(command.fd)
            os.close(command.fd)
        if command.timer is not None:
            command.timer.cancel()
        code = TIMED_OUT if command.timed_out else processes.exit_code(status)
        command.done(code, command.output.decode(errors="replace"))
        return True

    def _read(self, command: _Exec) -> None:
        while command.fd >= 0:
            try:
                data = os.read(command.fd, 65536)
            except BlockingIOError:
                return
            if not data:
                self._loop.forget(command.fd)
                os.close(command.fd)
                command.fd = -1
                return
            command.output = (command.output + data)[:MAX_OUTPUT]

    def _time_out(self, pid: int) -> None:
        command = self._running.get(pid)
        if command is not None:
            command.timed_out = True
            processes.kill(pid, signal.SIGKILL)  # the command in the container dies with it (PR_SET_PDEATHSIG)


class _Exec:
    def __init__(self, fd: int, done: Callable[[int, str], None]) -> None:
        self.fd = fd
        self.done = done
        self.output = b""
        self.timer: loop.Timer | None = None
        self.timed_out = False
