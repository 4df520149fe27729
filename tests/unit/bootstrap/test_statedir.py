"""The state directory: format, and what a run tells of itself."""

from __future__ import annotations

import json
import os
import pathlib
import stat

import pytest

from hpk import errors, paths
from hpk.bootstrap import runner, statedir


def test_first_use_makes_it_private(tmp_path: pathlib.Path) -> None:
    where = paths.Paths(str(tmp_path / ".hpk"))
    assert statedir.check_version(where) is False
    assert not os.path.exists(where.root)
    statedir.prepare(where)
    assert stat.S_IMODE(os.stat(where.root).st_mode) == 0o700
    assert statedir.check_version(where) is True


@pytest.mark.parametrize("found", ["2", "", "one\n"])
def test_other_format_is_told_and_nothing_touched(tmp_path: pathlib.Path, found: str) -> None:
    (tmp_path / "version").write_text(found)
    with pytest.raises(errors.StateError, match="format"):
        statedir.prepare(paths.Paths(str(tmp_path)))
    assert os.listdir(tmp_path) == ["version"]


def test_state_without_a_format_is_not_taken_for_new(tmp_path: pathlib.Path) -> None:
    (tmp_path / "etcd").mkdir()
    with pytest.raises(errors.StateError, match="no file version"):
        statedir.prepare(paths.Paths(str(tmp_path)))


def test_directory_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.StateError, match="Not a directory"):
        statedir.prepare(paths.Paths(str(tmp_path / "file" / "sub")))


def test_report_grows_by_steps(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "cluster.json"
    report = statedir.Report(str(file), {"jobID": "17", "host": "c1"})
    report.step("certificates")
    report.components({"etcd": runner.State("ready", 7, 0, report._began + 1.5, "")}, {"etcd": "etcd"})
    report.components({"etcd": runner.State("failed", 0, 1, report._began + 1.5, "was killed by SIGKILL")}, {"etcd": "etcd"})
    report.phase("ready")
    value = json.loads(file.read_text())
    assert [step["name"] for step in value["steps"]] == ["certificates", "etcd"]
    assert value["steps"][1]["at"] == 1.5
    assert value["components"]["etcd"] == {
        "summary": "etcd", "phase": "failed", "pid": 0, "restarts": 1, "lastExit": "was killed by SIGKILL",
    }  # fmt: skip
    assert (value["jobID"], value["ready"], value["phase"]) == ("17", True, "ready")
    report.phase("failed", error="no luck")
    report.phase("stopped")
    assert json.loads(file.read_text())["error"] == "no luck"
