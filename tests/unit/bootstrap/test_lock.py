"""The lock: one owner at a time, a dead one's place is taken, a live one's never."""

from __future__ import annotations

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
    return dataclasses.replace(lock.Owner.here("c1", job_id), **changes)  # type: ignore[arg-type]


def elsewhere(job_id: str = "17", host: str = "c2") -> lock.Owner:
    """An owner on another node: its process number means nothing here."""
    return owner(job_id, host=host, boot="other-boot", pid=4242, started="1")


def make(path: pathlib.Path, who: lock.Owner, alive: bool | None = None, **more: object) -> lock.Lock:
    return lock.Lock(str(path / "lock"), who, job_alive=lambda job: alive, **more)  # type: ignore[arg-type]


def age(path: pathlib.Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path / "lock", (then, then))


def test_second_owner_is_told_who_has_it(tmp_path: pathlib.Path) -> None:
    make(tmp_path, elsewhere()).acquire()
    with pytest.raises(errors.StateError, match=r"in use by the control plane of job 17 on c2") as caught:
        make(tmp_path, owner("18"), alive=True).acquire()
    assert "hpk down" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == ["lock"]


def test_release_frees_it(tmp_path: pathlib.Path) -> None:
    first = make(tmp_path, elsewhere())
    first.acquire()
    first.release()
    make(tmp_path, owner("18"), alive=True).acquire()


def test_live_process_of_this_node_keeps_it(tmp_path: pathlib.Path) -> None:
    make(tmp_path, owner()).acquire()
    age(tmp_path, 1000)
    with pytest.raises(errors.StateError, match=f"process {os.getpid()} on c1, which has been silent for 1000 s"):
        make(tmp_path, owner("18")).acquire()


@pytest.mark.parametrize("gone", [{"pid": 2**22 - 1}, {"started": "1"}], ids=["no such process", "number used again"])
def test_dead_process_of_this_node_loses_it_at_once(tmp_path: pathlib.Path, gone: dict[str, object]) -> None:
    make(tmp_path, owner("17", **gone)).acquire()
    new = make(tmp_path, owner("18"), alive=True)
    new.acquire()
    assert new.mine()


def test_ended_job_loses_it_at_once(tmp_path: pathlib.Path) -> None:
    make(tmp_path, elsewhere()).acquire()
    new = make(tmp_path, owner("18"), alive=False)
    new.acquire()
    assert new.mine()


def test_no_answer_from_slurm_is_no_reason_before_the_lease_ends(tmp_path: pathlib.Path) -> None:
    make(tmp_path, elsewhere()).acquire()
    age(tmp_path, lock.LEASE_SECONDS - 2)
    with pytest.raises(errors.StateError):
        make(tmp_path, owner("18"), alive=None).acquire()
    age(tmp_path, lock.LEASE_SECONDS + 2)
    make(tmp_path, owner("18"), alive=None).acquire()


def test_job_that_slurm_says_is_there_keeps_it_although_silent(tmp_path: pathlib.Path) -> None:
    """A suspended job would write again when it wakes up."""
    make(tmp_path, elsewhere()).acquire()
    age(tmp_path, 10 * lock.LEASE_SECONDS)
    with pytest.raises(errors.StateError, match="silent"):
        make(tmp_path, owner("18"), alive=True).acquire()


def test_requeued_job_takes_its_own_lock(tmp_path: pathlib.Path) -> None:
    make(tmp_path, elsewhere("17")).acquire()
    make(tmp_path, owner("17", restart=1), alive=True).acquire()


def test_same_job_twice_is_two_control_planes(tmp_path: pathlib.Path) -> None:
    make(tmp_path, elsewhere("17")).acquire()
    with pytest.raises(errors.StateError):
        make(tmp_path, owner("17"), alive=True).acquire()


def test_damaged_lock_is_held_until_its_lease_ends(tmp_path: pathlib.Path) -> None:
    (tmp_path / "lock").write_text("{")
    with pytest.raises(errors.StateError, match="damaged"):
        make(tmp_path, owner("18")).acquire()
    age(tmp_path, lock.LEASE_SECONDS + 1)
    make(tmp_path, owner("18")).acquire()


def test_renew_sets_the_lease(tmp_path: pathlib.Path) -> None:
    mine = make(tmp_path, elsewhere())
    mine.acquire()
    age(tmp_path, 50)
    assert mine.renew()
    assert (lock.read(str(tmp_path / "lock"))[1] or 99) < 2


def test_owner_notices_that_it_lost_the_lock_and_leaves_the_new_one(tmp_path: pathlib.Path) -> None:
    old = make(tmp_path, elsewhere())
    old.acquire()
    new = make(tmp_path, owner("18"), alive=False)
    new.acquire()
    assert not old.renew()
    old.release()
    assert new.mine()


async def test_keep_returns_when_the_lock_is_another_s(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    old = make(tmp_path, elsewhere())
    old.acquire()
    make(tmp_path, owner("18"), alive=False).acquire()
    assert await old.keep() == "another control plane has taken the lock"


async def test_keep_returns_when_the_disk_fails_for_a_lease(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    seconds = iter(range(0, 10_000, 5))
    mine = make(tmp_path, elsewhere(), clock=lambda: float(next(seconds)))
    mine.acquire()

    def fail() -> bool:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(mine, "renew", fail)
    assert "could not be renewed" in await mine.keep()


def test_lock_name_survives_an_nfs_repeat(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """link(2) may succeed on the server and say EEXIST after a repeated request: the link count tells."""
    real = os.link

    def link_twice(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", link_twice)
    mine = make(tmp_path, owner("18"))
    mine.acquire()
    assert mine.mine()


def _compete(folder: str, start: object, won: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    # a job and a boot of its own each: the others are known by Slurm's word only, "it is there"
    who = dataclasses.replace(lock.Owner.here("c1", str(os.getpid())), boot=str(os.getpid()))
    contender = lock.Lock(os.path.join(folder, "lock"), who, job_alive=lambda job: job != "17")
    try:
        contender.acquire()
    except errors.StateError:
        return
    time.sleep(1.0)
    if contender.mine():
        won.append(os.getpid())  # type: ignore[attr-defined]


@pytest.mark.parametrize("before", ["free", "dead"])
def test_of_many_at_once_one_wins(tmp_path: pathlib.Path, before: str) -> None:
    if before == "dead":
        make(tmp_path, elsewhere("17")).acquire()
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


def test_a_fresh_lock_moved_away_by_mistake_is_given_back(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the dead lock and its removal another one took it over."""
    make(tmp_path, elsewhere("17")).acquire()
    quick = make(tmp_path, owner("18", pid=os.getpid()), alive=False)
    slow = make(tmp_path, owner("19", boot="third"), alive=False)
    real = slow._dead
    done = threading.Event()

    def judge(holder: lock.Owner | None, seconds: float) -> str | None:
        why = real(holder, seconds)
        if not done.is_set():
            done.set()
            quick.acquire()
            slow._job_alive = lambda job: job == "18"
        return why

    monkeypatch.setattr(slow, "_dead", judge)
    with pytest.raises(errors.StateError, match="job 18"):
        slow.acquire()
    assert quick.mine()
