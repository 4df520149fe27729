"""A job that Slurm starts a second time does not run its Pod again."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import hpk.pod
from hpk import records

MAIN = pathlib.Path(hpk.pod.__file__).parent / "__main__.py"


def test_a_pod_that_ran_is_not_run_again(tmp_path: pathlib.Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"version": records.PLAN_VERSION, "podDir": str(tmp_path)}))
    status = tmp_path / "status.json"
    status.write_text(json.dumps({"jobID": "41", "phase": "Running", "seq": 3}))
    before = status.read_text()
    argv = [sys.executable, "-I", "-S", str(MAIN), str(plan)]
    done = subprocess.run(argv, env={"SLURM_JOB_ID": "41"}, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "job 41" in done.stdout
    assert status.read_text() == before
