"""The lock: one owner at a time, a dead one's place is taken, a live one's never."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing
import os
import pathlib
import threading
import time

import pytest

from hpk import errors
from hpk.bootstrap import lock


def owner(job_id: str = "", **changes: object) -> lock.Owner:
    return dataclasses.replace(lock.Owner.here("c1", "site", job_id), **changes)  # type: ignore[arg-type]


def elsewhere(job_id: str = "17", host: str = "c2") -> lock.Owner:
    """An owner on another node: its process number means nothing here."""
    return owner(job_id, host=host, boot="other-boot", pid=4242, started="1")


def says(alive: bool | None) -> lock.JobAlive:
    async def answer(job: str) -> bool | None:
        return alive

    return answer


def make(path: pathlib.Path, who: lock.Owner, alive: bool | None = None, **more: object) -> lock.Lock:
    return lock.Lock(str(path / "lock"), who, job_alive=says(alive), **more)  # type: ignore[arg-type]


def age(path: pathlib.Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path / "lock", (then, then))


async def test_second_owner_is_told_who_has_it(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, elsewhere()).acquire()
    with pytest.raises(errors.StateError, match=r"in use by the control plane of job 17 on c2") as caught:
        await make(tmp_path, owner("18"), alive=True).acquire()
    assert "hpk down" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == ["lock"]


async def test_release_frees_it(tmp_path: pathlib.Path) -> None:
    first = make(tmp_path, elsewhere())
    await first.acquire()
    first.release()
    await make(tmp_path, owner("18"), alive=True).acquire()


async def test_live_process_of_this_node_keeps_it(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, owner()).acquire()
    age(tmp_path, 1000)
    with pytest.raises(errors.StateError, match=f"process {os.getpid()} on c1, which has been silent for 1000 s"):
        await make(tmp_path, owner("18")).acquire()


@pytest.mark.parametrize("gone", [{"pid": 2**22 - 1}, {"started": "1"}], ids=["no such process", "number used again"])
async def test_dead_process_of_this_node_loses_it_at_once(tmp_path: pathlib.Path, gone: dict[str, object]) -> None:
    await make(tmp_path, owner("17", **gone)).acquire()
    new = make(tmp_path, owner("18"), alive=True)
    await new.acquire()
    assert new.mine()


async def test_ended_job_loses_it_at_once(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, elsewhere()).acquire()
    new = make(tmp_path, owner("18"), alive=False)
    await new.acquire()
    assert new.mine()


async def test_no_answer_from_slurm_is_no_reason_before_the_lease_ends(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, elsewhere()).acquire()
    age(tmp_path, lock.LEASE_SECONDS - 2)
    with pytest.raises(errors.StateError):
        await make(tmp_path, owner("18"), alive=None).acquire()
    age(tmp_path, lock.LEASE_SECONDS + 2)
    await make(tmp_path, owner("18"), alive=None).acquire()


async def test_job_that_slurm_says_is_there_keeps_it_although_silent(tmp_path: pathlib.Path) -> None:
    """A suspended job would write again when it wakes up."""
    await make(tmp_path, elsewhere()).acquire()
    age(tmp_path, 10 * lock.LEASE_SECONDS)
    with pytest.raises(errors.StateError, match="silent"):
        await make(tmp_path, owner("18"), alive=True).acquire()


async def test_slurm_of_another_cluster_knows_nothing_about_the_job(tmp_path: pathlib.Path) -> None:
    """Two clusters may share a home."""
    await make(tmp_path, elsewhere("17")).acquire()
    other = owner("17", cluster="other", restart=1)
    with pytest.raises(errors.StateError, match="job 17 on c2"):
        await make(tmp_path, other, alive=False).acquire()
    age(tmp_path, lock.LEASE_SECONDS + 1)
    await make(tmp_path, other, alive=True).acquire()


async def test_requeued_job_takes_its_own_lock(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, elsewhere("17")).acquire()
    await make(tmp_path, owner("17", restart=1), alive=True).acquire()


async def test_same_job_twice_is_two_control_planes(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, elsewhere("17")).acquire()
    with pytest.raises(errors.StateError):
        await make(tmp_path, owner("17"), alive=True).acquire()


async def test_damaged_lock_is_held_until_its_lease_ends(tmp_path: pathlib.Path) -> None:
    (tmp_path / "lock").write_text("{")
    with pytest.raises(errors.StateError, match="damaged"):
        await make(tmp_path, owner("18")).acquire()
    age(tmp_path, lock.LEASE_SECONDS + 1)
    await make(tmp_path, owner("18")).acquire()


async def test_renew_sets_the_lease(tmp_path: pathlib.Path) -> None:
    mine = make(tmp_path, elsewhere())
    await mine.acquire()
    age(tmp_path, 50)
    assert mine.renew()
    assert (lock.read(str(tmp_path / "lock"))[1] or 99) < 2


async def test_owner_notices_that_it_lost_the_lock_and_leaves_the_new_one(tmp_path: pathlib.Path) -> None:
    old = make(tmp_path, elsewhere())
    await old.acquire()
    new = make(tmp_path, owner("18"), alive=False)
    await new.acquire()
    assert not old.renew()
    old.release()
    assert new.mine()


async def test_keep_returns_when_the_lock_is_another_s(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    old = make(tmp_path, elsewhere())
    await old.acquire()
    await make(tmp_path, owner("18"), alive=False).acquire()
    assert await old.keep() == "another control plane has taken the lock"


async def test_keep_returns_when_the_disk_fails_for_a_lease(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    seconds = iter(range(0, 10_000, 5))
    mine = make(tmp_path, elsewhere(), clock=lambda: float(next(seconds)))
    await mine.acquire()

    def fail() -> bool:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(mine, "renew", fail)
    assert "could not be renewed" in await mine.keep()


async def test_lock_name_survives_an_nfs_repeat(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """link(2) may succeed on the server and say EEXIST after a repeated request: the link count tells."""
    real = os.link

    def link_twice(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", link_twice)
    mine = make(tmp_path, owner("18"))
    await mine.acquire()
    assert mine.mine()


async def _all_but_17(job: str) -> bool | None:
    return job != "17"


def _compete(folder: str, start: object, won: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    # a job and a boot of its own each: the others are known by Slurm's word only, "it is there"
    who = dataclasses.replace(lock.Owner.here("c1", "site", str(os.getpid())), boot=str(os.getpid()))
    contender = lock.Lock(os.path.join(folder, "lock"), who, job_alive=_all_but_17)
    try:
        asyncio.run(contender.acquire())
    except errors.StateError:
        return
    time.sleep(1.0)
    if contender.mine():
        won.append(os.getpid())  # type: ignore[attr-defined]


@pytest.mark.parametrize("before", ["free", "dead"])
async def test_of_many_at_once_one_wins(tmp_path: pathlib.Path, before: str) -> None:
    if before == "dead":
        await make(tmp_path, elsewhere("17")).acquire()
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        start, won = manager.Event(), manager.list()
        contenders = [context.Process(target=_compete, args=(str(tmp_path), start, won)) for _ in range(6)]
        for contender in contenders:
            contender.start()
        start.set()
        for contender in contenders:
            contender.join()
        assert len(won) == 1
        assert json.loads((tmp_path / "lock").read_text())["pid"] == won[0]
    assert os.listdir(tmp_path) == ["lock"]


async def test_a_fresh_lock_moved_away_by_mistake_is_given_back(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the dead lock and its removal another one took it over."""
    await make(tmp_path, elsewhere("17")).acquire()
    quick = make(tmp_path, owner("18", pid=os.getpid()), alive=False)
    slow = make(tmp_path, owner("19", boot="third"), alive=False)
    real = slow._dead
    done = threading.Event()

    async def judge(holder: lock.Owner | None, seconds: float) -> str | None:
        why = await real(holder, seconds)
        if not done.is_set():
            done.set()
            await quick.acquire()
            slow._job_alive = says(True)
        return why

    monkeypatch.setattr(slow, "_dead", judge)
    with pytest.raises(errors.StateError, match="job 18"):
        await slow.acquire()
    assert quick.mine()


async def test_a_predecessor_is_waited_for(tmp_path: pathlib.Path) -> None:
    first = make(tmp_path, elsewhere())
    await first.acquire()
    successor = asyncio.create_task(make(tmp_path, owner("18"), alive=True).acquire(after="17"))
    await asyncio.sleep(0.3)
    assert not successor.done()
    first.release()
    await asyncio.wait_for(successor, 5)


async def test_somebody_else_than_the_predecessor_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    await make(tmp_path, elsewhere("17")).acquire()
    with pytest.raises(errors.StateError, match="job 17"):
        await make(tmp_path, owner("18"), alive=True).acquire(after="16")
