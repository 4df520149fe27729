"""Container logs: files in CRI format in, what ``kubectl logs`` prints out.

A record of the file is ``<RFC 3339 time> <stdout|stderr> <F|P> <text>``; P: the line goes on in the next record. As upstream
(k8s.io/cri-client/pkg/logs), ``tailLines`` counts records of the present file, rotated files are not read, and following goes
on in the new file after a rotation and ends with the container instance.

The files are on a shared file system, where a notification never comes and a size may be old: at its end a file is opened again,
which makes NFS ask its server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime, timedelta, timezone

from hpk import errors

#: Bytes read at a time.
CHUNK = 256 * 1024
#: Pauses at the end of a followed file, in seconds: quick after output, slower while nothing comes.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:[.,](\d+))?([Zz]|[+-]\d\d:\d\d)")
#: Length of the times that our own supervisor writes: UTC, nine digits. These compare as they are.
_OWN_TIME = len("2006-01-02T15:04:05.000000000Z")


class BadQuery(errors.InvalidInput):
    """The query cannot be decoded (400)."""


class InvalidOptions(errors.InvalidInput):
    """The options contradict each other or are out of range (422)."""


@dataclasses.dataclass(frozen=True)
class Options:
    """core/v1 PodLogOptions, as far as a kubelet reads them. ``since`` is in the form of ``fixed_time()``, "" for all."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail: int | None = None
    limit: int | None = None
    since: str = ""
    stream: str = "All"


def fixed_time(text: str) -> str:
    """RFC 3339 as UTC with nine digits, so that texts compare like times. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    moment = datetime.strptime(match[1].upper(), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    if match[3] not in "Zz":
        hours, minutes = match[3][1:].split(":")
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        moment += -offset if match[3][0] == "+" else offset
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + "." + (match[2] or "")[:9].ljust(9, "0") + "Z"


def _flag(text: str | None) -> bool:
    """As apimachinery converts: a name without value is true, and so is anything but false and 0."""
    return text is not None and text.lower() not in ("false", "0")


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        raise BadQuery("Unable to decode query.")
    return int(text)


def options(query: Mapping[str, str], now: datetime) -> Options:
    """Decode and check a query as upstream's getContainerLogs. Raises BadQuery or InvalidOptions."""
    old = query.get("tail", "")  # older clients
    tail = _number({"tailLines": old}, "tailLines") if old and old != "all" else None if old == "all" else _number(query, "tailLines")
    limit = _number(query, "limitBytes")
    seconds = _number(query, "sinceSeconds")
    since = ""
    if query.get("sinceTime"):
        try:
            since = fixed_time(query["sinceTime"])
        except ValueError as exc:
            raise BadQuery("Unable to decode query.") from exc
    stream = query.get("stream") or "All"
    if (
        (tail is not None and tail < 0)
        or (limit is not None and limit < 1)
        or (seconds is not None and (seconds < 1 or since))
        or stream not in ("All", "Stdout", "Stderr")
        or (stream != "All" and tail is not None)
    ):
        raise InvalidOptions("Invalid request.")
    if seconds is not None:
        start = max(now - timedelta(seconds=min(seconds, 10**9)), datetime(1970, 1, 1, tzinfo=timezone.utc))
        since = fixed_time(start.isoformat())
    return Options(
        follow=_flag(query.get("follow")),
        previous=_flag(query.get("previous")),
        timestamps=_flag(query.get("timestamps")),
        tail=tail,
        limit=limit,
        since=since,
        stream=stream,
    )


class Formatter:
    """Turns whole records into output. Keeps what spans two calls: is the next record at the start of a line, bytes left."""

    def __init__(self, chosen: Options) -> None:
        self._options = chosen
        self._at_start = True
        self._since = chosen.since.encode()
        self._stream = chosen.stream.lower().encode()
        self.left = chosen.limit

    def feed(self, records: bytes) -> bytes:
        """Format ``records`` (each ends with a newline). Records that are none are left out."""
        out = b"".join([self._record(record) for record in records.split(b"\n")[:-1]])
        if self.left is not None:
            out = out[: self.left]
            self.left -= len(out)
        return out

    def _record(self, record: bytes) -> bytes:
        parts = record.split(b" ", 3)
        if len(parts) < 4 or parts[1] not in (b"stdout", b"stderr"):
            return b""
        time, stream, tags, text = parts
        if self._since and self._older(time):
            return b""
        if self._stream != b"all" and stream != self._stream:
            return b""
        if self._options.timestamps and self._at_start:
            text = time + b" " + text
        self._at_start = tags.split(b":", 1)[0] != b"P"
        return text + b"\n" if self._at_start else text

    def _older(self, time: bytes) -> bool:
        if len(time) != _OWN_TIME or time[-1:] != b"Z":
            try:
                time = fixed_time(time.decode("ascii", "replace")).encode()
            except ValueError:
                return True
        return time < self._since


def tail_start(fd: int, lines: int) -> int:
    """Offset of the last ``lines`` lines of a file, found from its end. An unfinished last line counts as one."""
    end = os.fstat(fd).st_size
    if lines == 0 or end == 0:
        return end
    wanted = lines + 1 if os.pread(fd, 1, end - 1) == b"\n" else lines
    position = end
    while position > 0:
        begin = max(0, position - CHUNK)
        block = os.pread(fd, position - begin, begin)
        found = block.count(b"\n")
        if found >= wanted:
            index = len(block)
            for _ in range(wanted):
                index = block.rindex(b"\n", 0, index)
            return begin + index + 1
        wanted -= found
        position = begin
    return 0


class _File:
    """The log at ``path`` as a stream of bytes that goes on in a new file after a rotation. All calls block: use a thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._offset = 0

    def open(self, tail: int | None) -> bool:
        """False while there is no such file."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._offset = 0 if tail is None else tail_start(self._fd, tail)
        return True

    def read(self) -> bytes:
        data = os.pread(self._fd, CHUNK, self._offset)
        self._offset += len(data)
        return data

    def again(self) -> bytes:
        """At the end: open the file anew and read on; b"" when there is nothing more now."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self.read()
        old, new = os.fstat(self._fd), os.fstat(fd)
        if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
            self._switch(fd, 0 if new.st_size < self._offset else self._offset)  # cut by somebody: what there is now is new
            return self.read()
        if rest := self.read():  # rotated: the old one to its end first
            os.close(fd)
            return rest
        self._switch(self._successor(old.st_ino, fd), 0)
        return self.read() or self.again()

    def _switch(self, fd: int, offset: int) -> None:
        os.close(self._fd)
        self._fd, self._offset = fd, offset

    def _successor(self, inode: int, present: int) -> int:
        """The file after the one that we have read: a writer may have rotated more than once meanwhile. Takes over ``present``."""
        folder, name = os.path.split(self._path)
        rotated = sorted(entry for entry in os.listdir(folder) if entry.startswith(f"{name}."))
        opened: list[tuple[int, int]] = []  # (inode, descriptor), oldest first
        for entry in rotated:
            try:
                fd = os.open(os.path.join(folder, entry), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # removed meanwhile
            opened.append((os.fstat(fd).st_ino, fd))
        opened.append((os.fstat(present).st_ino, present))
        inodes = [number for number, _ in opened]
        chosen = opened[min(inodes.index(inode) + 1, len(opened) - 1)][1] if inode in inodes else opened[0][1]
        for _, fd in opened:
            if fd != chosen:
                os.close(fd)
        return chosen

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def read(path: str, chosen: Options, running: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """Yield the output piece by piece. ``running()`` tells whether this instance of the container may still write.

    Raises FileNotFoundError when the instance has ended and there is no file.
    """
    file = _File(path)
    formatter = Formatter(chosen)
    pending = b""
    pause = FIRST_PAUSE
    try:
        while not await asyncio.to_thread(file.open, chosen.tail):
            if not running():
                if await asyncio.to_thread(file.open, chosen.tail):
                    break
                raise FileNotFoundError(path)
            if not chosen.follow:
                return
            await asyncio.sleep(LONGEST_PAUSE / 2)
            yield b""
        while True:
            alive = running()  # asked before reading: what was written until then is seen
            data = await asyncio.to_thread(file.read) or await asyncio.to_thread(file.again)
            if data:
                pause = FIRST_PAUSE
                pending, records = _split(pending, data)
                if records and (out := formatter.feed(records)):
                    yield out
                if formatter.left == 0:
                    return
                continue
            if not (chosen.follow and alive):
                break
            yield b""  # lets the caller see whether anybody still listens
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        if pending and (out := formatter.feed(pending + b"\n")):  # the last words of a writer that died
            yield out
    finally:
        await asyncio.shield(asyncio.to_thread(file.close))


def _split(pending: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Return (unfinished record, finished records)."""
    end = data.rfind(b"\n") + 1
    if end == 0:
        return pending + data, b""
    return data[end:], pending + data[:end]
