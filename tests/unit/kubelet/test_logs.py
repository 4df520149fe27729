"""Container logs: query, format, tail, following. Behind kubectl and the API server: tests/component/test_server.py."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime, timezone
from typing import Any

import pytest

from hpk.kubelet.server import logs
from hpk.kubelet.server.logs import Options

NOW = datetime(2026, 11, 24, 10, 0, 0, 500000, tzinfo=timezone.utc)
T = "2026-11-24T09:{:02d}:00.000000000Z"


def record(minute: int, text: str, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"{T.format(minute)} {stream} {tag} {text}\n".encode()


def test_query() -> None:
    assert logs.options({}, NOW) == Options()
    query = {"follow": "true", "timestamps": "1", "previous": "", "tailLines": "5", "limitBytes": "7"}
    assert logs.options(query, NOW) == Options(follow=True, timestamps=True, previous=True, tail=5, limit=7)
    assert logs.options({"follow": "false", "timestamps": "0"}, NOW) == Options()
    assert logs.options({"sinceSeconds": "60"}, NOW).since == "2026-11-24T09:59:00.500000000Z"
    assert logs.options({"sinceTime": "2026-11-24T11:00:00+02:00"}, NOW).since == T.format(0)
    assert logs.options({"tail": "3"}, NOW).tail == 3
    assert logs.options({"tail": "all", "tailLines": "3"}, NOW).tail is None
    assert logs.options({"sinceSeconds": "9000000000000000000"}, NOW).since == "1995-03-18T08:13:20.500000000Z"


@pytest.mark.parametrize("query", [{"tailLines": "x"}, {"limitBytes": "1.5"}, {"sinceTime": "yesterday"}, {"sinceSeconds": ""}])
def test_query_that_cannot_be_decoded(query: dict[str, str]) -> None:
    with pytest.raises(logs.BadQuery):
        logs.options(query, NOW)


@pytest.mark.parametrize(
    "query",
    [
        {"tailLines": "-1"},
        {"limitBytes": "0"},
        {"sinceSeconds": "0"},
        {"sinceSeconds": "1", "sinceTime": "2026-01-01T00:00:00Z"},
        {"stream": "Other"},
        {"stream": "Stdout", "tailLines": "1"},
    ],
)
def test_query_out_of_range(query: dict[str, str]) -> None:
    with pytest.raises(logs.InvalidOptions):
        logs.options(query, NOW)


def test_fixed_time() -> None:
    assert logs.fixed_time("2026-11-24T10:00:00.5-01:30") == "2026-11-24T11:30:00.500000000Z"
    with pytest.raises(ValueError, match="RFC 3339"):
        logs.fixed_time("2026-11-24 10:00:00")


RECORDS = record(1, "one") + record(2, "tw", "stderr", "P") + record(3, "o", "stderr") + record(4, "") + record(5, "five")


def feed(chosen: Options, data: bytes = RECORDS) -> bytes:
    return logs.Formatter(chosen).feed(data)


def test_format() -> None:
    assert feed(Options()) == b"one\ntwo\n\nfive\n"
    assert feed(Options(limit=6)) == b"one\ntw"
    assert feed(Options(stream="Stderr")) == b"two\n"
    assert feed(Options(since=T.format(3))) == b"o\n\nfive\n"
    stamped = feed(Options(timestamps=True)).decode().splitlines()
    assert stamped == [f"{T.format(1)} one", f"{T.format(2)} two", f"{T.format(4)} ", f"{T.format(5)} five"]


def test_partial_lines_over_two_reads() -> None:
    formatter = logs.Formatter(Options(timestamps=True))
    assert formatter.feed(record(1, "a", tag="P")) + formatter.feed(record(2, "b")) == f"{T.format(1)} ab\n".encode()
    formatter = logs.Formatter(Options())
    assert formatter.feed(record(1, "a", tag="P")) + formatter.feed(record(2, "b") + record(3, "c")) == b"ab\nc\n"


def test_what_is_no_record_is_left_out() -> None:
    noise = b"garbage\n" + record(1, "one") + b"\n" + b"2026 stdnone F x\n" + record(2, "two words  here ")
    assert feed(Options(), noise) == b"one\ntwo words  here \n"


def test_other_writers_times() -> None:
    data = b"2026-11-24T11:30:00.1+02:00 stdout F early\n2026-11-24T12:30:00+02:00 stdout F late\n"
    assert feed(Options(since="2026-11-24T10:00:00.000000000Z"), data) == b"late\n"


@pytest.mark.parametrize("block", [7, 64, logs.CHUNK])
@pytest.mark.parametrize("ending", [b"", b"unfinished"])
def test_tail(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, block: int, ending: bytes) -> None:
    monkeypatch.setattr(logs, "CHUNK", block)
    lines = [b"%d" % number * (number % 5) + b"\n" for number in range(40)]
    data = b"".join(lines) + ending
    (tmp_path / "log").write_bytes(data)
    fd = os.open(tmp_path / "log", os.O_RDONLY)
    try:
        for wanted in (0, 1, 2, 17, 39, 40, 41, 500):
            expected = [*lines, *([ending] if ending else [])][-wanted:] if wanted else []
            assert data[logs.tail_start(fd, wanted) :] == b"".join(expected)
    finally:
        os.close(fd)


async def collect(path: str, chosen: Options, running: bool = False) -> bytes:
    return b"".join([piece async for piece in logs.read(path, chosen, lambda: running)])


async def test_read(tmp_path: Any) -> None:
    path = os.fspath(tmp_path / "0.log")
    with pytest.raises(FileNotFoundError):
        await collect(path, Options())
    assert await collect(path, Options(), running=True) == b""
    with open(path, "wb") as file:
        file.write(RECORDS + record(6, "cut off")[:-1])
    assert await collect(path, Options()) == b"one\ntwo\n\nfive\ncut off\n"
    assert await collect(path, Options(tail=1)) == b"cut off\n"
    assert await collect(path, Options(limit=5)) == b"one\nt"


class Follower:
    def __init__(self, path: str, chosen: Options) -> None:
        self.running = True
        self.output = b""
        self.task = asyncio.create_task(self._follow(path, chosen))

    async def _follow(self, path: str, chosen: Options) -> None:
        async for piece in logs.read(path, chosen, lambda: self.running):
            self.output += piece

    async def sees(self, expected: bytes) -> None:
        for _ in range(300):
            if self.output == expected:
                return
            await asyncio.sleep(0.01)
        assert self.output == expected


async def test_follow_rotations_truncation_and_the_end(tmp_path: Any) -> None:
    path = os.fspath(tmp_path / "0.log")

    def append(data: bytes) -> None:
        with open(path, "ab") as file:
            file.write(data)

    append(record(1, "one") + record(2, "two"))
    follower = Follower(path, Options(follow=True, tail=1))
    await follower.sees(b"two\n")
    append(record(3, "thr")[:-1])  # half a record
    await asyncio.sleep(0.1)
    append(b"ee\n")
    await follower.sees(b"two\nthree\n")
    append(record(4, "four"))
    for number, text in enumerate(("five", "six")):  # faster than we look
        os.rename(path, f"{path}.20261124-0900.{number:03d}")
        append(record(5, text))
    await follower.sees(b"two\nthree\nfour\nfive\nsix\n")
    with open(path, "wb") as file:
        file.write(record(7, "x"))  # shorter than what was read: cut, and written anew
    await follower.sees(b"two\nthree\nfour\nfive\nsix\nx\n")
    append(record(8, "last"))
    follower.running = False
    await asyncio.wait_for(follower.task, 2)
    assert follower.output.endswith(b"x\nlast\n")


def test_last_words_before_a_rotation_are_read(tmp_path: Any) -> None:
    """Written to the old file after we were at its end and before we saw the new one."""
    path = os.fspath(tmp_path / "0.log")
    with open(path, "wb") as writer:
        writer.write(b"a")
        writer.flush()
        file = logs._File(path)
        assert file.open(None)
        assert [file.read(), file.read()] == [b"a", b""]
        writer.write(b"b")
    os.rename(path, f"{path}.20261124-090000")
    with open(path, "wb") as writer:
        writer.write(b"c")
    assert [file.again(), file.again(), file.again()] == [b"b", b"c", b""]
    file.close()


async def test_follow_survives_a_removed_file(tmp_path: Any) -> None:
    path = os.fspath(tmp_path / "0.log")
    with open(path, "wb") as file:
        file.write(record(1, "one"))
    follower = Follower(path, Options(follow=True))
    await follower.sees(b"one\n")
    os.unlink(path)
    await asyncio.sleep(0.1)
    with open(path, "wb") as file:
        file.write(record(2, "two"))
    await follower.sees(b"one\ntwo\n")
    follower.running = False
    await asyncio.wait_for(follower.task, 2)
