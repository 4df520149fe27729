"""One poll(2) loop with timers: sleeps in the kernel until something happens. No threads, no wake-ups in between."""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.POLLIN | select.POLLHUP | select.POLLERR
WRITE = select.POLLOUT
#: Tracebacks that one job writes at most.
MAX_DEFECTS = 20


class Timer:
    """A call in the future; cancel() makes it void."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    def __init__(self) -> None:
        self._poll = select.poll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._running = True
        self._defects = 0

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call(events)`` whenever ``fd`` has one of ``events``; a second watch() of the same descriptor replaces the first."""
        self._poll.register(fd, events)
        self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``; to be called before it is closed."""
        if self._calls.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call()`` once, in ``seconds``."""
        timer = Timer(time.monotonic() + max(0.0, seconds), call)
        self._count += 1
        heapq.heappush(self._timers, (timer.when, self._count, timer))
        return timer

    def stop(self) -> None:
        self._running = False

    def _stopped(self) -> bool:
        return not self._running

    def run(self) -> None:
        """Serve until stop()."""
        self._running = True
        while self._running:
            now = time.monotonic()
            while self._timers and (self._timers[0][2].call is None or self._timers[0][0] <= now):
                call = heapq.heappop(self._timers)[2].call
                if call is not None:
                    self._safely(call)
            if self._stopped():
                return
            timeout = None
            if self._timers:
                # rounded up, or the loop would spin through the last millisecond
                timeout = max(0, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)
            for fd, events in self._poll.poll(timeout):
                watcher = self._calls.get(fd)  # an earlier call may have ended this one
                if watcher is not None:
                    self._safely(watcher, events)

    def _safely(self, call: Callable[..., None], *arguments: int) -> None:
        """Call; a defect in one place is written down and must not take the Pod's containers along."""
        try:
            call(*arguments)
        except Exception:
            self._defects += 1
            if self._defects <= MAX_DEFECTS:
                import traceback

                traceback.print_exc()
            time.sleep(0.1)  # should it come again at once, it must not take the processor
