"""What `hpk status` and `hpk up` say, from what they see."""

from __future__ import annotations

import io
import pathlib
import sys
import time

import pytest

from hpk import config, errors, paths
from hpk.bootstrap import down, jobs, lock, status, up
from hpk.slurm import commands, states


def job(job_id: str, word: str, comment: str, reason: str = "Priority", work_dir: str = "/") -> commands.Job:
    return commands.Job(job_id, states.parse(word), word, reason, "", "", 0, 0, 0, "hpk", work_dir, comment)


HOLDER = lock.Owner("c1", "boot", 7, "1", "site", "17", 0, "t")


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
        ({}, None, None, job("18", "PENDING", jobs.COMMENT), "job 18 is pending (Priority)", False),
        (
            {"phase": "ready"},
            HOLDER,
            90.0,
            job("17", "PENDING", "", "BeginTime"),
            "job 17 is queued again (BeginTime); it ran on c1",
            False,
        ),
        ({"phase": "ready", "startedAt": "T"}, HOLDER, 3.0, None, "ready, job 17 on c1 since T", True),
        ({"phase": "ready", "startedAt": "T"}, HOLDER, 300.0, None, "job 17 on c1 has been silent for 300 s", False),
    ],
)
def test_control_plane_line(
    report: dict, holder: lock.Owner | None, age: float | None, job: commands.Job | None, line: str, runs: bool
) -> None:
    assert status.control_plane_line(report, holder, age, job, asked=job is not None) == (line, runs)


def test_job_that_is_over_without_a_word() -> None:
    report = {"phase": "ready", "startedAt": "T"}
    line, runs = status.control_plane_line(report, HOLDER, 3.0, None, asked=True)
    assert (line, runs) == ("not running (job 17 of cluster site on c1 is over, without having said so)", False)


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


HOME = paths.Paths.default({})


class Squeue(commands.Slurm):
    """Slurm with a scripted answer of squeue; None: no answer."""

    def __init__(self, *answer: commands.Job) -> None:
        super().__init__(config.Config(), {})
        self.answer: tuple[commands.Job, ...] | None = answer

    async def jobs(self) -> dict[str, commands.Job]:
        if self.answer is None:
            raise errors.SlurmUnknown("squeue: Unable to contact slurm controller")
        return {job.job_id: job for job in self.answer}


async def test_the_control_plane_s_job_is_known_by_comment_or_id() -> None:
    slurm = Squeue(
        job("15", "COMPLETED", jobs.COMMENT),
        job("16", "RUNNING", "hpk uid=abc", work_dir=f"{HOME.pods}/default_a_abc"),
        job("17", "PENDING", jobs.COMMENT),
        job("18", "RUNNING", ""),
        job("19", "RUNNING", "hpk uid=def", work_dir="/another/state/pods/default_b_def"),
    )
    found = await jobs.control_plane(slurm, HOME)
    assert found is not None
    assert found.job_id == "17"
    assert [pod.job_id for pod in await jobs.pods(slurm, HOME)] == ["16"]
    found = await jobs.control_plane(slurm, HOME, {"18"})
    assert found is not None
    assert found.job_id == "18"
    slurm.answer = (job("18", "RUNNING", "of another cluster's namesake"),)
    assert await jobs.control_plane(slurm, HOME, {"18"}) is None


async def test_each_state_directory_has_its_own_control_plane() -> None:
    other = paths.Paths("/home/alice/other")
    slurm = Squeue(job("17", "RUNNING", jobs.COMMENT))
    assert await jobs.control_plane(slurm, other) is None
    slurm.answer = (*slurm.answer, job("18", "RUNNING", jobs.comment(other)))  # type: ignore[misc]
    found = await jobs.control_plane(slurm, other)
    assert found is not None
    assert found.job_id == "18"
    found = await jobs.control_plane(slurm, HOME)
    assert found is not None
    assert found.job_id == "17"


async def test_unknown_is_not_gone() -> None:
    slurm = Squeue(job("17", "COMPLETING", "x"))
    assert await jobs.alive(slurm, "17") is True
    slurm.answer = (job("17", "CANCELLED", "x"),)
    assert await jobs.alive(slurm, "17") is False
    slurm.answer = ()
    assert await jobs.alive(slurm, "17") is False
    slurm.answer = None
    assert await jobs.alive(slurm, "17") is None
    with pytest.raises(errors.SlurmUnknown):
        await jobs.control_plane(slurm, HOME)


async def test_up_tells_why_the_job_ended(tmp_path: pathlib.Path) -> None:
    where = paths.Paths(str(tmp_path / ".hpk"))
    (tmp_path / ".hpk" / "logs").mkdir(parents=True)
    (tmp_path / ".hpk" / "logs" / "hpk-17.out").write_text("x\nhpk: error: controlPlane.port: port 80 is taken\nhint: choose\n")
    slurm = Squeue(job("17", "FAILED", jobs.COMMENT))
    with pytest.raises(errors.StateError, match=r"job 17 ended \(FAILED\): controlPlane\.port: port 80 is taken"):
        await up.follow(slurm, where, "17", up.Ticker(time.monotonic(), submitted=True), 5.0)


async def test_up_shows_the_reason_of_the_queue_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "ASK_SECONDS", 0.01)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", said)
    slurm = Squeue(job("17", "PENDING", jobs.COMMENT))
    with pytest.raises(errors.StateError, match="not ready after"):
        await up.follow(slurm, paths.Paths(str(tmp_path)), "17", up.Ticker(time.monotonic(), submitted=True), 0.5)
    assert said.getvalue().count("job 17 is queued: Priority") == 1


async def test_up_waits_on_while_slurm_does_not_answer(tmp_path: pathlib.Path) -> None:
    slurm = Squeue()
    slurm.answer = None
    with pytest.raises(errors.StateError, match="job 17 goes on"):
        await up.follow(slurm, paths.Paths(str(tmp_path)), "17", up.Ticker(time.monotonic(), submitted=True), 0.5)


def test_jobs_known_to_the_state_directory(tmp_path: pathlib.Path) -> None:
    where = paths.Paths(str(tmp_path))
    assert up.known_jobs(where) == set()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "submitted.json").write_text('{"jobID": "17"}')
    assert up.known_jobs(where) == {"17"}
    (tmp_path / "run" / "submitted.json").write_text("[")
    assert up.known_jobs(where) == set()


async def test_down_elsewhere_says_where(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.StateError, match="process 7 on no-such-host"):
        await down.end_process(lock.Owner("no-such-host", "b", 7, "1", "", "", 0, "t"), paths.Paths(str(tmp_path)))
