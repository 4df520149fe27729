"""WorkQueue: client-go's promises."""

from __future__ import annotations

import asyncio

import pytest

from hpk.kube.workqueue import WorkQueue


async def test_a_key_waits_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_one_worker_per_key_and_again_when_dirty() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(queue.get(), 0.02)
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_earlier_timer_wins() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 30)
    queue.add_after("a", 0.01)
    queue.add_after("a", 20)
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_add_cancels_the_timer() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.02)
    queue.add("a")
    await queue.get()
    queue.done("a")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)


async def test_rate_limit_grows_until_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: WorkQueue[str] = WorkQueue(base=1, maximum=5)
    pauses: list[float] = []
    monkeypatch.setattr(queue, "add_after", lambda key, seconds: pauses.append(seconds))
    for _ in range(5):
        queue.add_rate_limited("a")
    queue.forget("a")
    queue.add_rate_limited("a")
    assert pauses == [1, 2, 4, 5, 5, 1]


async def test_cancelled_worker_loses_no_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")  # wakes the first ...
    first.cancel()  # ... which leaves
    assert await asyncio.wait_for(second, 1) == "a"


async def test_close_forgets_timers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.01)
    queue.close()
    await asyncio.sleep(0.03)
    assert len(queue) == 0
