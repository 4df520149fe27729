"""hpk up does not take the word of a run that is over."""

from __future__ import annotations

import argparse
import os
import pathlib

import pytest

from hpk import config, files, paths, procs
from hpk.bootstrap import jobs, statedir, up
from hpk.slurm import commands, states


async def test_a_requeued_job_is_waited_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = paths.Paths(str(tmp_path / "state"))
    statedir.prepare(where)
    files.write_json(where.cluster_run, {"jobID": "80", "host": "c1", "phase": "ready", "ready": True, "steps": []})
    queued = commands.Job("80", states.JobState.PENDING, "PENDING", "BeginTime", "", "", 1.0, 0.0, 0.0, "hpk", "/x", jobs.COMMENT)
    followed = []

    async def control_plane(*args: object) -> commands.Job:
        return queued

    async def follow(slurm: object, where: paths.Paths, job_id: str, *args: object) -> None:
        followed.append((job_id, os.path.exists(where.cluster_run)))

    monkeypatch.setenv("HPK_HOME", where.root)
    monkeypatch.setattr(up.configuration, "load", lambda where: config.Config())
    monkeypatch.setattr(procs, "find", lambda *names, **more: names[0])
    monkeypatch.setattr(jobs, "control_plane", control_plane)
    monkeypatch.setattr(up, "follow", follow)
    await up.run(argparse.Namespace(script=None, no_wait=False, timeout=0.0, flags=[]))
    assert followed == [("80", False)]
