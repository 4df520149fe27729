"""sizeLimit of emptyDir volumes: what counts, the message, and that only Pods with a limit wake up for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpk.pod import emptydirs, loop


def used(folder: Path) -> int:
    *_, last = emptydirs.usage(str(folder))
    return last


def test_usage_counts_blocks_once_and_follows_no_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep" / "er").mkdir(parents=True)
    outside.mkdir()
    (outside / "big").write_bytes(os.urandom(1 << 20))
    (inside / "deep" / "er" / "one").write_bytes(os.urandom(1 << 18))
    base = used(inside)
    assert base >= 1 << 18
    os.link(inside / "deep" / "er" / "one", inside / "again")
    (inside / "link").symlink_to(outside)
    with open(inside / "sparse", "wb") as file:
        file.truncate(1 << 30)
    assert used(inside) < base + (1 << 16)
    assert used(tmp_path / "none") == 0


def test_large_trees_are_walked_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emptydirs, "PIECE", 10)
    for number in range(95):
        (tmp_path / str(number)).write_text("x")
    assert len(list(emptydirs.usage(str(tmp_path)))) == 10


@pytest.mark.parametrize(("size", "exceeds"), [(1000, False), (300_000, True)])
def test_exceeding_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, exceeds: bool) -> None:
    monkeypatch.setattr(emptydirs, "PAUSE", 0.01)
    told: list[str] = []
    looper = loop.Loop()
    (tmp_path / "f").write_bytes(os.urandom(size))
    volume: dict[str, Any] = {"kind": "emptyDir", "name": "x", "path": str(tmp_path), "sizeLimit": 204800, "limitText": "200Ki"}
    emptydirs.Limits(looper, [volume], told.append)
    looper.later(0.3, looper.stop)
    looper.run()
    assert told == (['Usage of EmptyDir volume "x" exceeds the limit "200Ki". '] if exceeds else [])


def test_only_volumes_with_a_limit() -> None:
    volumes = [{"kind": "emptyDir", "sizeLimit": None}, {"kind": "hostPath"}, {"kind": "emptyDir", "sizeLimit": 5}]
    assert emptydirs.limited({"jobVolumes": volumes}) == volumes[2:]
