"""Container output in the CRI's log format: ``<RFC 3339 time> <stdout|stderr> <F|P> <line>``.

The format and the splitting of long lines are containerd's: a line longer than 16 KiB goes out in parts marked P, the last part
marked F; what has no line end when the stream closes is marked P. Rotation is the kubelet's (containerLogMaxSize,
containerLogMaxFiles), done here since only the writer knows that nothing is lost.
"""

from __future__ import annotations

import os
import time

from hpk import records

#: Longest content of one log line, in bytes.
MAX_LINE = 16 * 1024
#: Output kept in memory for terminationMessagePolicy FallbackToLogsOnError: 2 KiB, 80 lines (API: terminationMessagePolicy).
TAIL_BYTES = 2048
TAIL_LINES = 80


class LogWriter:
    """The log of one container instance. ``path`` is created; writing never raises: a full disk must not stop the container."""

    def __init__(self, path: str, max_bytes: int, max_files: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.max_files = max(2, max_files)
        self.problem = ""
        self._pending = {"stdout": b"", "stderr": b""}
        self._tail = b""
        self._size = 0
        self._fd = -1
        self._remove_older()
        self._open()

    def _remove_older(self) -> None:
        """Keep the log of the instance before this one only (`kubectl logs --previous`), as upstream: a crash loop is endless."""
        folder, name = os.path.split(self.path)
        number = name.partition(".")[0]
        try:
            for entry in os.listdir(folder) if number.isdigit() else ():
                head, _, rest = entry.partition(".")
                if head.isdigit() and int(head) < int(number) - 1 and (rest == "log" or rest.startswith("log.")):
                    os.unlink(os.path.join(folder, entry))
        except OSError:
            pass  # no folder yet, or removed meanwhile

    def _open(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            self._fd = -1
            self.problem = str(error)

    def write(self, stream: str, data: bytes) -> None:
        """Take output as it was read; whole lines are written at once, the rest waits for its end."""
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        lines = (self._pending[stream] + data).split(b"\n")
        rest = lines.pop()
        stamp = records.now_nano()
        full = f"{stamp} {stream} F ".encode()
        partial = f"{stamp} {stream} P ".encode()
        out = []
        for line in lines:
            while len(line) > MAX_LINE:
                out.append(partial + line[:MAX_LINE])
                line = line[MAX_LINE:]
            out.append(full + line)
        while len(rest) >= MAX_LINE:
            out.append(partial + rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._pending[stream] = rest
        if out:
            out.append(b"")
            self._write(b"\n".join(out))

    def close_stream(self, stream: str) -> None:
        """The stream has ended: write what has no line end."""
        rest = self._pending[stream]
        self._pending[stream] = b""
        if rest:
            self._write(f"{records.now_nano()} {stream} P ".encode() + rest + b"\n")

    def close(self) -> None:
        for stream in self._pending:
            self.close_stream(stream)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def tail(self) -> str:
        """The last output, both streams mixed as they came."""
        return "\n".join(self._tail.decode(errors="replace").splitlines()[-TAIL_LINES:])

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            return
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
            if self._size >= self.max_bytes:
                self._rotate()
        except OSError as error:
            self.problem = str(error)

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        folder, name = os.path.split(self.path)
        nanoseconds = time.time_ns()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(nanoseconds // 1_000_000_000))
        target = f"{self.path}.{stamp}.{nanoseconds % 1_000_000_000:09d}"  # several may be full within one second
        os.rename(self.path, target)
        rotated = sorted(entry for entry in os.listdir(folder) if entry.startswith(name + "."))
        for entry in rotated[: max(0, len(rotated) - (self.max_files - 1))]:
            os.unlink(os.path.join(folder, entry))
        self._open()
