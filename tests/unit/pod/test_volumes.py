"""Volumes made in the job: modes, types, and links that leave the volume."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hpk.pod import node, volumes


def make(kind: str, **fields: Any) -> None:
    volumes.make({"kind": kind, "name": "v", **fields})


def test_empty_dir_is_open_to_all_inside_private_parents(tmp_path: Path) -> None:
    path = tmp_path / "scratch" / "volumes" / "v"
    for _ in range(2):
        make("emptyDir", path=str(path), mode=0o777)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("kind", "good", "words"),
    [
        ("Directory", "dir", "a directory"),
        ("File", "file", "a file"),
        ("Socket", "socket", "a socket file"),
        ("CharDevice", "null", "a character device"),
    ],
)
def test_host_path_types(tmp_path: Path, kind: str, good: str, words: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    paths = {name: str(tmp_path / name) for name in ("dir", "file", "socket", "missing")} | {"null": os.devnull}
    make("hostPath", path=paths[good], type=kind)
    for name in paths.keys() - {good}:
        with pytest.raises(volumes.VolumeError) as error:
            make("hostPath", path=paths[name], type=kind)
        assert str(error.value) == f'MountVolume.SetUp failed for volume "v" : hostPath type check failed: {paths[name]} is not {words}'


def test_host_path_is_created_where_asked_for(tmp_path: Path) -> None:
    make("hostPath", path=str(tmp_path / "a" / "b"), type="DirectoryOrCreate")
    make("hostPath", path=str(tmp_path / "file"), type="FileOrCreate")
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "file").is_file()
    with pytest.raises(volumes.VolumeError):
        make("hostPath", path=str(tmp_path / "file"), type="DirectoryOrCreate")


def test_sub_path_is_made(tmp_path: Path) -> None:
    make("subPath", base=str(tmp_path), subPath="a/b")
    make("subPath", base=str(tmp_path), subPath="a/b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "file").write_text("")
    make("subPath", base=str(tmp_path), subPath="a/file")


@pytest.mark.parametrize("target", ["/etc", "../..", "../outside"])
def test_sub_path_never_leaves_the_volume(tmp_path: Path, target: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "outside").mkdir()
    (base / "link").symlink_to(target)
    with pytest.raises(volumes.VolumeError, match="leaves the volume"):
        make("subPath", base=str(base), subPath="link/new")
    assert not (tmp_path / "outside" / "new").exists()
    with pytest.raises(volumes.VolumeError, match=r"must not contain \.\."):
        make("subPath", base=str(base), subPath="../outside")


def test_hosts_file(tmp_path: Path) -> None:
    make("hosts", path=str(tmp_path / "x" / "hosts"), content="1.2.3.4 me\n", nodeHosts=True)
    text = (tmp_path / "x" / "hosts").read_text()
    assert text.startswith("1.2.3.4 me\n")
    assert "localhost" in text


def test_remove_tree_ignores_modes_and_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("")
    (tree / "link").symlink_to(outside)
    (tree / "a" / "b").chmod(0)
    (tree / "a").chmod(0)
    node.remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "keep").exists()


def test_values_of_the_job_take_the_place_of_sentinels() -> None:
    value = {"a": ["x \ufdd0POD_IP\ufdd1 y", 1, None], "b": {"c": "\ufdd0SCRATCH\ufdd1/v"}}
    assert node.replace_values(value, {"POD_IP": "1.2.3.4", "SCRATCH": "/s"}) == {"a": ["x 1.2.3.4 y", 1, None], "b": {"c": "/s/v"}}


def test_folders_of_killed_jobs_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    for name in ("hpk-old-1", "hpk-used-2", "hpk-new-3", "other-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
        if "new" not in name:
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / "hpk-link-5").symlink_to(tmp_path / "other-4")
    with subprocess.Popen(["flock", str(tmp_path / "hpk-used-2"), "sleep", "60"], start_new_session=True) as holder:
        try:
            while subprocess.run(["flock", "--nonblock", str(tmp_path / "hpk-used-2"), "true"]).returncode == 0:
                time.sleep(0.01)
            os.utime(tmp_path / "hpk-used-2", (0, 0))
            node.remove_stale([str(tmp_path), str(tmp_path / "missing")])
        finally:
            os.killpg(holder.pid, signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hpk-link-5", "hpk-new-3", "hpk-used-2", "other-4"]
    assert (tmp_path / "other-4" / "file").exists()
