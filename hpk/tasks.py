"""Named asyncio tasks that do not die unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

log = logging.getLogger(__name__)


def guarded(coro: Coroutine[Any, Any, None], name: str, *, eternal: bool = True) -> asyncio.Task[None]:
    """Start ``coro`` as a task that logs its crash; an ``eternal`` one that merely returns is a crash too.

    The exception is raised again, so that whoever waits for the task (hpk's mains do) ends with it.
    """

    async def body() -> None:
        try:
            await coro
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("task %s crashed", name)
            raise
        if eternal:
            raise RuntimeError(f"task {name} returned, which it never should")

    return asyncio.create_task(body(), name=name)


async def stop(tasks: Iterable[asyncio.Task[Any]], *, timeout: float = 10.0) -> None:
    """Cancel ``tasks`` and wait up to ``timeout`` seconds; those that are stuck are named in the log."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if not pending:
        return
    _, stuck = await asyncio.wait(pending, timeout=timeout)
    for task in stuck:
        log.warning("task %s does not end", task.get_name())
