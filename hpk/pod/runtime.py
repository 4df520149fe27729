"""Container instances as processes: the runtime's process, the container's process 1, pipes and log.

Starts them by the job script (``bash SCRIPT container NAME``), so that what the supervisor runs is what a person can run.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import time

from hpk import sandbox
from hpk.pod import devices, images, logs, loop, node, processes, rootfs, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The runtime's last words when it could not execute the program (Apptainer and Singularity: sylog's FATAL lines).
_FATAL = re.compile(r"FATAL:\s+(.*)")
#: The exit code of the runtime in that case.
RUNTIME_FAILED = 255
#: First and longest pause between two looks whether the container's program was executed, in seconds. Only while it starts.
FIRST_LOOK = 0.01
LONGEST_LOOK = 0.1
#: So often an empty environment counts as one that exec(2) has not put in place yet; then it is taken for empty.
MAX_EMPTY_LOOKS = 5
#: Upstream's exit code of a container that could not be started.
START_ERROR = 128
#: Largest termination message, in bytes (API: terminationMessagePath).
MAX_MESSAGE = 4096


class Instance:
    """One run of a container."""

    def __init__(self, name: str, pid: int, log: logs.LogWriter) -> None:
        self.name = name
        self.pid = pid  # of the runtime, our child
        self.program: int | None = None  # process 1 of the container, once it executes the container's program
        self.environment: dict[str, str] = {}
        self.empty_looks = 0
        self.log = log
        self.streams: dict[int, str] = {}
        self.stdin = -1
        self.looks = FIRST_LOOK
        self.status: int | None = None  # wait status, kept until the streams are read to their end
        self.mpi = False


class Runtime:
    """Starts, watches and signals instances. ``started(name)`` and ``exited(name, instance, status)`` are called as it happens."""

    def __init__(
        self,
        plan: dict[str, Any],
        looper: loop.Loop,
        box: sandbox.Sandbox,
        env: dict[str, str],
        started: Callable[[str], None],
        exited: Callable[[str, Instance, int], None],
    ) -> None:
        self._plan = plan
        self._loop = looper
        self._box = box
        self._env = env
        self._started = started
        self._exited = exited
        self.instances: dict[str, Instance] = {}  # by container
        self._mounts: dict[str, tuple[str, int]] = {}  # image to (mount point, pid)

    # -- start ------------------------------------------------------------------------------------------------------------

    def start(self, spec: dict[str, Any], restarts: int, working_dir: str = "") -> str:
        """Start an instance. Returns "" or why it could not be started at all."""
        name = spec["name"]
        self._fresh_termination_message(spec)
        log = logs.LogWriter(
            os.path.join(spec["logDir"], f"{restarts}.log"), self._plan.get("logMaxBytes", 10 << 20), self._plan.get("logMaxFiles", 5)
        )
        env = dict(self._env)
        if working_dir:
            env["HPK_WORKING_DIR"] = working_dir
        image = None if spec.get("mpi") else self._mount(spec["imagePath"])

        scratch, shm = self._env["HPK_SCRATCH"], os.path.join(self._env["HPK_SHM"], ".shm")
        dev, layer = os.path.join(scratch, "dev"), os.path.join(scratch, "layers", name)
        os.makedirs(dev, exist_ok=True)

        def prepare(child_env: dict[str, str]) -> None:
            if spec.get("mpi"):
                return
            sandbox.enter(self._box)
            node.remove_tree(layer)  # of the instance before
            if "mnt" in self._box.fds:
                folder = self._mounted(image, spec["imagePath"])
                sandbox.unshare(sandbox.CLONE_NEWNS)  # not before: what is mounted later in the Pod's would not be seen here
                devices.make(dev, shm, spec)
                child_env["HPK_DEV"] = dev
                if folder is not None:
                    child_env["HPK_IMAGE"] = folder
                    root = None if spec.get("readOnlyRootFilesystem") else rootfs.mount(folder, layer, spec)
                    if root is not None:
                        child_env["HPK_IMAGE"] = child_env["HPK_ROOT"] = root
            if self._box.fds:
                sandbox.enter_user(int(spec.get("runAsUser") or 0), int(spec.get("runAsGroup") or 0))

        tty = bool(spec.get("tty"))
        ours, theirs = self._pipes(tty, bool(spec.get("stdin")))
        try:
            argv = ["/bin/bash", self._plan["script"], "container", name]
            pid, problem = processes.fork_exec(argv, env, theirs, prepare, tty=tty, guarded=True)
        finally:
            for fd in set(theirs):
                os.close(fd)
        instance = Instance(name, pid, log)
        instance.stdin = ours[0]
        instance.mpi = bool(spec.get("mpi"))
        self.instances[name] = instance
        for fd, stream in zip(ours[1:], ("stdout", "stderr")):  # noqa: B905 - strict= is new in Python 3.10
            if fd >= 0:
                instance.streams[fd] = stream
                os.set_blocking(fd, False)
                self._loop.watch(fd, loop.READ, lambda _, fd=fd: self._read(instance, fd))  # type: ignore[misc]
        if not problem:
            if instance.mpi:
                self._loop.later(0, lambda: self._has_started(instance, None))
            else:
                self._loop.later(instance.looks, lambda: self._look(instance))
        return problem

    def _pipes(self, tty: bool, stdin: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(our ends of stdin, stdout, stderr or -1; the container's three)."""
        if tty:
            master, slave = os.openpty()
            return (-1, master, -1), (slave, slave, slave)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        if stdin:
            in_read, in_write = os.pipe()
        else:
            in_read, in_write = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
        return (in_write, out_read, err_read), (in_read, out_write, err_write)

    def _fresh_termination_message(self, spec: dict[str, Any]) -> None:
        path = spec.get("terminationMessageFile")
        if path:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            os.fchmod(fd, 0o666)
            os.close(fd)

    def _mount(self, path: str) -> tuple[str, int] | None:
        """Begin to mount a SIF for all containers; None when the runtime has to do it itself."""
        if "mnt" not in self._box.fds:
            return None
        if path in self._mounts:
            return self._mounts[path]
        offset = images.squashfs_offset(path)
        program = images.squashfuse()
        if offset is None or program is None:
            return None
        target = os.path.join(self._env["HPK_SCRATCH"], "images", str(len(self._mounts)))
        os.makedirs(target, mode=0o700, exist_ok=True)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = [program, "-f", "-o", f"allow_other,ro,offset={offset}", path, target]
        pid, problem = processes.fork_exec(argv, dict(self._env), (null, null, 2), lambda _: sandbox.enter(self._box), deaf=True)
        os.close(null)
        if problem:
            words.say(f"{program}: {problem}")
            return None
        self._mounts[path] = (target, pid)
        return self._mounts[path]

    def _mounted(self, image: tuple[str, int] | None, path: str) -> str | None:
        """The folder in which an image's files are, in a forked child; None when the runtime has to mount it."""
        if image is not None:
            return image[0] if images.wait_mounted(*image) else None
        return path if os.path.isdir(path) else None

    def _look(self, instance: Instance) -> None:
        """Whether the container's own program is being executed by now."""
        if instance.status is not None or self.instances.get(instance.name) is not instance:
            return
        program = processes.program(instance.pid)
        if program is not None:
            # read now, since a program may write over it later; while exec is under way it is still empty, and so are the arguments
            instance.environment = processes.environment(program)
            instance.empty_looks += processes.has_arguments(program)
            if instance.environment or instance.empty_looks > MAX_EMPTY_LOOKS:
                self._has_started(instance, program)
                return
        instance.looks = min(instance.looks * 1.3, LONGEST_LOOK)
        self._loop.later(instance.looks, lambda: self._look(instance))

    def _has_started(self, instance: Instance, program: int | None) -> None:
        if instance.status is None:
            instance.program = program
            self._started(instance.name)

    # -- output and end ---------------------------------------------------------------------------------------------------

    def _read(self, instance: Instance, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the last process has closed the terminal
        if data:
            instance.log.write(instance.streams[fd], data)
        else:
            self._close_stream(instance, fd)

    def _close_stream(self, instance: Instance, fd: int) -> None:
        self._loop.forget(fd)
        os.close(fd)
        instance.log.close_stream(instance.streams.pop(fd))

    def reaped(self, pid: int, status: int) -> bool:
        """Tell the end of process ``pid``. False: it is none of ours."""
        for image, (_, fuse) in list(self._mounts.items()):
            if fuse == pid:
                del self._mounts[image]
                return True
        for instance in self.instances.values():
            if instance.pid == pid and instance.status is None:
                instance.status = status
                self._drain(instance)
                self._exited(instance.name, instance, status)
                return True
        return False

    def _drain(self, instance: Instance) -> None:
        """Read what is still in the pipes. A process that outlives the container does not hold them open for us."""
        for fd in list(instance.streams):
            end = time.monotonic() + 2
            while time.monotonic() < end and fd in instance.streams:
                before = len(instance.streams)
                try:
                    data = os.read(fd, 65536)
                except OSError:
                    data = b""
                if data:
                    instance.log.write(instance.streams[fd], data)
                elif len(instance.streams) == before:
                    self._close_stream(instance, fd)
            if fd in instance.streams:
                self._close_stream(instance, fd)
        if instance.stdin >= 0:
            os.close(instance.stdin)
            instance.stdin = -1
        instance.log.close()

    def start_error(self, instance: Instance, spec: dict[str, Any], code: int) -> str:
        """Why the container's program was never executed, in the words that containerd uses; "" when it was.

        The runtime's exit code 255 may be the program's own: so only if we have not seen the program run, and the runtime's
        message for such a failure is the last thing in the log.
        """
        if instance.program is not None or instance.mpi or code not in (RUNTIME_FAILED, 126, 127):
            return ""
        lines = instance.log.tail().splitlines()
        found = _FATAL.search(lines[-1]) if lines else None
        if not found:
            return "" if code == RUNTIME_FAILED or not lines or not lines[-1].startswith("hpk: ") else lines[-1]
        text = found.group(1)
        command = spec.get("command") or [""]
        if text.startswith(("failed to set working directory", "exec ", "while ", "While ")):
            return text
        if text.startswith(f'"{command[0]}"'):
            return f"exec: {text}"
        return f'exec: "{command[0]}": {text}'

    def termination_message(self, instance: Instance, spec: dict[str, Any], failed: bool) -> str:
        """The container's last words (API: terminationMessagePath, terminationMessagePolicy)."""
        text = ""
        path = spec.get("terminationMessageFile")
        if path:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
                try:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        text = os.read(fd, MAX_MESSAGE).decode(errors="replace")
                finally:
                    os.close(fd)
            except OSError as error:
                text = f"Error on reading termination log {path}: {error}"
        if not text and failed and spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = instance.log.tail()
        return text

    # -- signals ----------------------------------------------------------------------------------------------------------

    def signal(self, name: str, number: int) -> None:
        """Signal the container's process 1, or the runtime where it has none of its own."""
        instance = self.instances.get(name)
        if instance is None or instance.status is not None:
            return
        if instance.program is None and not instance.mpi:
            instance.program = processes.program(instance.pid)
            if instance.program is None:
                self.kill(name)  # there is no program yet to be polite to
                return
        processes.kill(instance.program or instance.pid, number)

    def kill(self, name: str) -> None:
        instance = self.instances.get(name)
        if instance is None or instance.status is not None:
            return
        # with process 1 the kernel ends its whole PID namespace, and the runtime then passes the exit code on
        if instance.program is not None:
            processes.kill(instance.program, signal.SIGKILL)
        else:
            for pid in [*processes.descendants(instance.pid), instance.pid]:
                processes.kill(pid, signal.SIGKILL)
