"""A successor is submitted in time, once, with what this job asked for; when it runs it is waited for."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib

import pytest

from hpk import paths
from hpk.bootstrap import handover, jobs
from hpk.slurm import commands, states


def job(job_id: str, state: states.JobState = states.JobState.RUNNING, **changes: object) -> commands.Job:
    made = commands.Job(job_id, state, state.value.upper(), "", "c1", "c1", 100.0, 1000.0, 1600.0, "hpk", "/x", jobs.COMMENT)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("now", "left"), [(1000.0, 300.0), (1200.0, 100.0), (1300.0, 0.0), (1599.0, 0.0)])
def test_due_is_never_in_the_first_half_of_the_limit(now: float, left: float) -> None:
    assert handover.due(job("7"), now) == left


def test_due_without_a_limit_is_now() -> None:
    assert handover.due(job("7", end=0.0), 1001.0) == 0.0


def test_environment_is_that_of_the_user_and_names_the_predecessor() -> None:
    given = {"HOME": "/h", "SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "2048", "SBATCH_PARTITION": "x", "SLURM_CONF": "/c"}
    assert handover.environment(given, "7") == {"HOME": "/h", "SLURM_CONF": "/c", "HPK_PREDECESSOR": "7"}


class Queue:
    """Slurm with this job and what is submitted after it."""

    def __init__(self) -> None:
        self.known = {"7": job("7", start=1.0, end=2.0)}

    async def jobs(self) -> dict[str, commands.Job]:
        return self.known

    async def request(self, job_id: str) -> list[str]:
        return ["--time=2:00"]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Queue:
    queue = Queue()
    calls: list[list[str]] = []

    async def submit(script: str, flags: list[str], env: dict[str, str]) -> str:
        calls.append(flags)
        queue.known["8"] = job("8", states.JobState.PENDING)
        assert env["HPK_PREDECESSOR"] == "7"
        return "8"

    queue.calls = calls  # type: ignore[attr-defined]
    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(handover, "LOOK_SECONDS", 0.01)
    script = tmp_path / "script"
    script.write_text("")
    monkeypatch.setenv("HPK_JOB_SCRIPT", str(script))
    (tmp_path / "run").mkdir()
    return queue


async def test_nothing_happens_without_the_signal(queue: Queue, tmp_path: pathlib.Path) -> None:
    task = asyncio.create_task(handover.Handover(paths.Paths(str(tmp_path)), queue, "7").run())  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not task.done()
    assert "8" not in queue.known
    task.cancel()


async def test_hands_over_when_the_successor_runs(queue: Queue, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "STOP_SECONDS", float("-inf"))
    this = handover.Handover(paths.Paths(str(tmp_path)), queue, "7")  # type: ignore[arg-type]
    this.wanted.set()
    task = asyncio.create_task(this.run())
    await asyncio.sleep(0.05)
    assert not task.done()  # it is queued: go on
    assert "--time=2:00" in queue.calls[0]  # type: ignore[attr-defined]
    queue.known["8"] = job("8")
    assert await asyncio.wait_for(task, 5) == "job 8 takes over"
    assert len(queue.calls) == 1  # type: ignore[attr-defined]


async def test_stops_before_the_limit_although_the_successor_waits(queue: Queue, tmp_path: pathlib.Path) -> None:
    this = handover.Handover(paths.Paths(str(tmp_path)), queue, "7")  # type: ignore[arg-type]
    this.wanted.set()
    assert "time limit" in await asyncio.wait_for(this.run(), 5)
