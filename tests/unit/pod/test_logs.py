"""CRI log lines, long lines, rotation and the tail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpk.pod import logs


def lines(path: Path) -> list[tuple[str, str, str]]:
    found = []
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)", line)
        assert match, line
        found.append((match[1], match[2], match[3]))
    return found


def test_lines_are_put_together_from_pieces(tmp_path: Path) -> None:
    log = logs.LogWriter(str(tmp_path / "0.log"), 1 << 20, 5)
    for piece in (b"hel", b"lo\nwor", b"ld\n\n"):
        log.write("stdout", piece)
    log.write("stderr", b"err")
    log.write("stdout", b"x\n")
    log.close()
    assert lines(tmp_path / "0.log") == [
        ("stdout", "F", "hello"),
        ("stdout", "F", "world"),
        ("stdout", "F", ""),
        ("stdout", "F", "x"),
        ("stderr", "P", "err"),
    ]


@pytest.mark.parametrize("size", [16383, 16384, 16385, 32768, 50000])
@pytest.mark.parametrize("piece", [1000, 65536])
def test_long_lines_are_split_and_nothing_is_lost(tmp_path: Path, size: int, piece: int) -> None:
    log = logs.LogWriter(str(tmp_path / "0.log"), 1 << 20, 5)
    data = b"x" * size + b"\nend\n"
    for start in range(0, len(data), piece):
        log.write("stdout", data[start : start + piece])
    log.close()
    found = lines(tmp_path / "0.log")
    assert sum(len(text) for _, _, text in found) == size + 3
    assert found[-1] == ("stdout", "F", "end")
    assert max(len(text) for _, _, text in found) <= 16384
    assert "".join(text + ("\n" if tag == "F" else "") for _, tag, text in found) == data.decode()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_rotation_keeps_a_bounded_number_of_files(tmp_path: Path, count: int) -> None:
    log = logs.LogWriter(str(tmp_path / "0.log"), 1000, count)
    for number in range(300):
        log.write("stdout", b"%d\n" % number)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == count
    newest = [text for file in [*files[1:], files[0]] for _, _, text in lines(file)]
    assert newest[-1] == "299"
    assert newest == [str(number) for number in range(300 - len(newest), 300)]


def test_other_containers_logs_are_not_rotated_away(tmp_path: Path) -> None:
    (tmp_path / "10.log").write_text("keep")
    log = logs.LogWriter(str(tmp_path / "1.log"), 100, 2)
    for _ in range(100):
        log.write("stdout", b"0123456789\n")
    assert (tmp_path / "10.log").read_text() == "keep"


def test_tail(tmp_path: Path) -> None:
    log = logs.LogWriter(str(tmp_path / "0.log"), 1 << 20, 5)
    for number in range(1000):
        log.write("stdout" if number % 2 else "stderr", b"%d\n" % number)
    assert log.tail().splitlines() == [str(number) for number in range(920, 1000)]


def test_log_that_cannot_be_written_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = logs.LogWriter(str(tmp_path / "file" / "0.log"), 1 << 20, 5)
    log.write("stdout", b"x\n")
    log.close()
    assert log.problem


def test_logs_of_the_present_and_the_previous_instance_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        log = logs.LogWriter(str(tmp_path / f"{number}.log"), 1000, 2)
        for _ in range(30):
            log.write("stdout", b"0123456789\n")
        log.close()
    (tmp_path / "9.txt").write_text("none of ours")
    logs.LogWriter(str(tmp_path / "12.log"), 1000, 2).close()
    assert {name.name.split(".")[0] for name in tmp_path.iterdir() if ".log" in name.name} == {"11", "12"}
    assert (tmp_path / "9.txt").exists()
