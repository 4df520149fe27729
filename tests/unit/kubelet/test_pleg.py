"""The one squeue: when it is called, what it tells, and what it does not conclude."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from hpk import errors
from hpk.kubelet import pleg
from hpk.slurm import commands
from hpk.slurm.states import JobState
from tests.fakes import clock

UID = "0b2f9b0c-6d3a-4a52-9d5e-0c1c3f7a9a11"


def job(job_id: str = "7", state: JobState = JobState.RUNNING, uid: str = UID, reason: str = "None") -> commands.Job:
    return commands.Job(job_id, state, state.name, reason, "c1", "c1", 1.0, 2.0, 0.0, "default/a", "/x", f"hpk uid={uid}")


class Slurm:
    """``listed`` and ``accounts`` are what squeue and sacct say; None: they do not answer."""

    def __init__(self) -> None:
        self.listed: list[commands.Job] | None = []
        self.accounts: dict[str, commands.Job] | None = {}
        self.calls: list[float] = []
        self.seconds = 0.0

    async def jobs(self) -> dict[str, commands.Job]:
        self.calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.listed is None:
            raise errors.SlurmUnknown("Unable to contact slurm controller")
        return {item.job_id: item for item in self.listed}

    async def history(self, ids: Iterable[str]) -> dict[str, commands.Job]:
        if self.accounts is None:
            raise errors.SlurmUnknown("sacct: no answer")
        return {job_id: self.accounts[job_id] for job_id in ids if job_id in self.accounts}


@pytest.fixture
def slurm() -> Slurm:
    return Slurm()


class Running:
    """A Pleg at work, and what it told."""

    def __init__(self, slurm: Slurm) -> None:
        self.told: list[tuple[str, commands.Job]] = []
        self.pleg = pleg.Pleg(slurm, lambda uid, found: self.told.append((uid, found)))  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.pleg.run())


@clock.virtual
async def test_no_call_without_jobs(slurm: Slurm) -> None:
    Running(slurm)
    await asyncio.sleep(3600)
    assert slurm.calls == []


@clock.virtual
async def test_each_change_is_told_once(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job(state=JobState.PENDING, reason="Priority")]
    running.pleg.track(UID, "7")
    await asyncio.sleep(2)
    slurm.listed = [job()]
    await asyncio.sleep(60)
    assert [(uid, found.state) for uid, found in running.told] == [(UID, JobState.PENDING), (UID, JobState.RUNNING)]


@clock.virtual
async def test_fast_after_a_submission_slow_when_all_run_and_speak(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job()]
    running.pleg.track(UID, "7", silent=False)
    await asyncio.sleep(100)
    gaps = [after - before for before, after in zip(slurm.calls, slurm.calls[1:], strict=False)]
    assert gaps[0] == pytest.approx(0.5)
    assert gaps[-1] == pytest.approx(10.0)
    assert len(slurm.calls) < 25
    running.pleg.track(UID, "7", silent=True)  # its channel broke: the node may be dead
    await asyncio.sleep(100)
    assert slurm.calls[-1] - slurm.calls[-2] == pytest.approx(2.0)


@clock.virtual
async def test_one_call_serves_many_pods(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job(str(number), uid=f"u{number}") for number in range(1000)]
    for number in range(1000):
        running.pleg.track(f"u{number}", str(number))
    await asyncio.sleep(0.1)
    assert len(slurm.calls) == 1
    assert len(running.told) == 1000


@clock.virtual
async def test_no_answer_changes_nothing(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job()]
    running.pleg.track(UID, "7")
    await asyncio.sleep(5)
    slurm.listed, slurm.accounts = None, None
    await asyncio.sleep(3600)
    assert not running.pleg.healthy
    assert [found.state for _, found in running.told] == [JobState.RUNNING]
    assert len(slurm.calls) < 200  # it backs off
    slurm.listed = [job(state=JobState.COMPLETED)]
    await asyncio.sleep(40)
    assert running.told[-1][1].state is JobState.COMPLETED
    assert running.pleg.healthy


@clock.virtual
async def test_job_that_vanished_is_looked_up_in_accounting(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job()]
    running.pleg.track(UID, "7")
    await asyncio.sleep(5)
    slurm.listed, slurm.accounts = [], {"7": job(state=JobState.TIMEOUT)}
    await asyncio.sleep(15)
    assert running.told[-1][1].state is JobState.TIMEOUT


@clock.virtual
async def test_accounting_that_lags_or_lies_is_not_believed(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job()]
    running.pleg.track(UID, "7")
    await asyncio.sleep(5)
    slurm.listed, slurm.accounts = [], {"7": job(state=JobState.PENDING)}
    await asyncio.sleep(3)
    assert running.told[-1][1].state is JobState.RUNNING
    await asyncio.sleep(60)
    assert running.told[-1][1].state is JobState.GONE  # the controller answered often enough


@clock.virtual
async def test_accounting_of_another_ones_job_is_not_ours(slurm: Slurm) -> None:
    running = Running(slurm)
    running.pleg.track(UID, "7")
    slurm.accounts = {"7": job(state=JobState.FAILED, uid="another")}
    await asyncio.sleep(60)
    assert [found.state for _, found in running.told] == [JobState.GONE]


@clock.virtual
async def test_id_of_another_job_is_not_ours(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job("7", uid="another"), job("8")]
    running.pleg.track(UID, "7")
    await asyncio.sleep(1)
    assert [found.job_id for _, found in running.told] == ["8"]


@clock.virtual
async def test_look_asks_anew_and_fails_when_slurm_is_away(slurm: Slurm) -> None:
    running = Running(slurm)
    assert await running.pleg.look(UID) is None
    slurm.listed = [job()]
    found = await asyncio.gather(*(running.pleg.look(UID) for _ in range(20)))
    assert {item.job_id for item in found if item} == {"7"}
    assert len(slurm.calls) == 2
    slurm.listed = None
    with pytest.raises(errors.SlurmUnknown):
        await running.pleg.look(UID)


@clock.virtual
async def test_untracked_is_forgotten(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job()]
    running.pleg.track(UID, "7")
    await asyncio.sleep(1)
    running.pleg.untrack(UID)
    calls = len(slurm.calls)
    await asyncio.sleep(600)
    assert len(slurm.calls) == calls


@clock.virtual
async def test_slow_answers_make_the_pace_slower_but_not_blind(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed, slurm.seconds = [job(state=JobState.PENDING)], 1.0
    running.pleg.track(UID, "7")
    await asyncio.sleep(100)
    assert 9 <= len(slurm.calls) <= 12
    slurm.seconds = 9.0
    await asyncio.sleep(30)
    slurm.listed, slurm.seconds = [job(state=JobState.FAILED)], 0.1
    await asyncio.sleep(30)
    assert running.told[-1][1].state is JobState.FAILED


@clock.virtual
async def test_of_two_jobs_of_a_pod_the_submitted_one_counts(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job("8"), job("7", state=JobState.FAILED)]
    running.pleg.track(UID, "7")
    await asyncio.sleep(1)
    assert [found.job_id for _, found in running.told] == ["7"]


@clock.virtual
async def test_record_of_a_refused_request_is_no_job(slurm: Slurm) -> None:
    running = Running(slurm)
    slurm.listed = [job("7", state=JobState.FAILED, reason="BadConstraints")]
    assert await running.pleg.look(UID) is None
    slurm.listed.append(job("8", state=JobState.FAILED, reason="NonZeroExitCode"))
    found = await running.pleg.look(UID)
    assert found is not None
    assert found.job_id == "8"
