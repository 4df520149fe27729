"""What `hpk status` and `hpk up` say, from what they see."""

from __future__ import annotations

import io
import pathlib
import sys
import time

import pytest

from hpk import errors, paths
from hpk.bootstrap import down, jobs, lock, status, up

HOLDER = lock.Owner("c1", "boot", 7, "1", "17", 0, "t")


@pytest.mark.parametrize(
    ("report", "holder", "age", "job", "line", "runs"),
    [
        ({}, None, None, None, "not running", False),
        (
            {"jobID": "17", "host": "c1", "phase": "stopped", "error": ""},
            None,
            None,
            None,
            "not running (last: job 17 on c1, stopped)",
            False,
        ),
        (
            {"jobID": "", "pid": 7, "host": "c1", "phase": "failed", "error": "no"},
            None,
            None,
            None,
            "not running (last: process 7 on c1, failed: no)",
            False,
        ),
        ({}, None, None, jobs.Job("18", "PENDING", "Priority", "", jobs.COMMENT), "job 18 is pending (Priority)", False),
        ({"phase": "ready", "startedAt": "T"}, HOLDER, 3.0, None, "ready, job 17 on c1 since T", True),
        ({"phase": "ready", "startedAt": "T"}, HOLDER, 300.0, None, "job 17 on c1 has been silent for 300 s", False),
    ],
)
def test_control_plane_line(
    report: dict, holder: lock.Owner | None, age: float | None, job: jobs.Job | None, line: str, runs: bool
) -> None:
    assert status.control_plane_line(report, holder, age, job) == (line, runs)


def test_pod_counts() -> None:
    assert status.pod_counts([]) == "none"
    assert status.pod_counts([{"status": {"phase": phase}} for phase in ("Running", "Pending", "Running")]) == "2 Running, 1 Pending"


def test_component_lines() -> None:
    lines = status.component_lines({"etcd": {"summary": "etcd", "phase": "ready", "restarts": 2, "lastExit": "was killed by SIGKILL"}})
    assert lines == ["  etcd                 ready, 2 restarts (last: was killed by SIGKILL)"]


def test_script_is_found_beside_the_package(tmp_path: pathlib.Path) -> None:
    where = paths.Paths(str(tmp_path))
    assert up.find_script(where, None).endswith("/slurm/hpk.sbatch")
    (tmp_path / "hpk.sbatch").touch()
    assert up.find_script(where, None) == str(tmp_path / "hpk.sbatch")
    with pytest.raises(errors.InvalidInput, match="--script: /no/such"):
        up.find_script(where, "/no/such")


@pytest.fixture
def squeue(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A squeue that prints a file, or fails with its text when it begins with "fail"."""
    answer = tmp_path / "answer"
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\nread -r word rest < {answer}\nif [ "$word" = fail ]; then echo "$rest" >&2; exit 1; fi\ncat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answer


def test_the_control_plane_s_job_is_known_by_comment_or_id(squeue: pathlib.Path) -> None:
    squeue.write_text(
        "15|COMPLETED|None|c1|hpk control-plane\n16|RUNNING|None|c1|hpk uid=abc\n"
        "17|RUNNING|None|c1|hpk control-plane\n18|RUNNING|None|c2|my|own\n"
    )
    found = jobs.control_plane()
    assert found is not None
    assert found.job_id == "17"
    assert [job.job_id for job in jobs.pods()] == ["16"]
    found = jobs.control_plane("18")
    assert found is not None
    assert found.job_id == "18"


def test_unknown_is_not_gone(squeue: pathlib.Path) -> None:
    squeue.write_text("fail slurm_load_jobs error: Unable to contact slurm controller")
    assert jobs.alive("17") is None
    with pytest.raises(errors.SlurmUnknown):
        jobs.control_plane()
    squeue.write_text("fail slurm_load_jobs error: Invalid job id specified")
    assert jobs.alive("17") is False
    squeue.write_text("17|COMPLETING|None|c1|x\n")
    assert jobs.alive("17") is True
    squeue.write_text("17|CANCELLED|None|c1|x\n")
    assert jobs.alive("17") is False


def test_up_tells_why_the_job_ended(squeue: pathlib.Path, tmp_path: pathlib.Path) -> None:
    squeue.write_text("17|FAILED|NonZeroExitCode|c1|hpk control-plane\n")
    where = paths.Paths(str(tmp_path / ".hpk"))
    (tmp_path / ".hpk" / "logs").mkdir(parents=True)
    (tmp_path / ".hpk" / "logs" / "hpk-17.out").write_text("x\nhpk: error: controlPlane.port: port 80 is taken\nhint: choose\n")
    with pytest.raises(errors.StateError, match=r"job 17 ended \(FAILED\): controlPlane\.port: port 80 is taken"):
        up.follow(where, "17", up.Ticker(time.monotonic()), 5.0)


def test_up_shows_the_reason_of_the_queue_once(squeue: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    squeue.write_text("17|PENDING|Priority||hpk control-plane\n")
    with pytest.raises(errors.StateError, match="not ready after"):
        up.follow(paths.Paths(str(tmp_path)), "17", up.Ticker(time.monotonic()), 0.5)
    assert sys.stdout.getvalue().count("job 17 is queued: Priority") == 1  # type: ignore[attr-defined]


def test_down_elsewhere_says_where(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.StateError, match="process 7 on no-such-host"):
        down.end_process(lock.Owner("no-such-host", "b", 7, "1", "", 0, "t"), paths.Paths(str(tmp_path)))
