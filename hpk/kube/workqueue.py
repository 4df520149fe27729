"""A queue of keys for reconciling workers, with client-go's promises (k8s.io/client-go/util/workqueue).

A key waits at most once; it is never given to two workers at a time; one added while it is worked on comes again afterwards.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """``base`` and ``maximum``: first and longest pause of add_rate_limited(), in seconds; it doubles with each failure of a key."""

    def __init__(self, *, base: float = 0.2, maximum: float = 60.0) -> None:
        self._base = base
        self._maximum = maximum
        self._ready: collections.deque[K] = collections.deque()
        self._dirty: set[K] = set()  # waiting, or to be done again
        self._processing: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: collections.Counter[K] = collections.Counter()
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()

    def __len__(self) -> int:
        """Keys that could be taken now."""
        return len(self._ready)

    def add(self, key: K) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._push(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Add ``key`` later; of two such wishes the earlier one counts."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def add_rate_limited(self, key: K) -> None:
        """Add ``key`` after a pause that grows with its failures since forget()."""
        pause = min(self._base * 2 ** min(self._failures[key], 30), self._maximum)
        self._failures[key] += 1
        self.add_after(key, pause)

    def failures(self, key: K) -> int:
        return self._failures[key]

    def forget(self, key: K) -> None:
        """The key did well: its next pause is the shortest again. Does not take it out of the queue."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for a key and take it. Call done() afterwards, whatever happened."""
        while not self._ready:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # the call was ours and we are leaving: pass it on
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise
        key = self._ready.popleft()
        self._processing.add(key)
        self._dirty.discard(key)
        return key

    def done(self, key: K) -> None:
        self._processing.discard(key)
        if key in self._dirty:
            self._push(key)

    def close(self) -> None:
        """Forget all timers, so that nothing is added after the end."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _push(self, key: K) -> None:
        self._ready.append(key)
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
