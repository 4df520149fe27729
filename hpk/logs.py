"""One log format for every long-running part: time, level, the Pod it is about, the message.

The Pod is set once by its worker (``pod_context``) and appears on each line below, whichever module writes it.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
from collections.abc import Iterator

_pod: contextvars.ContextVar[str] = contextvars.ContextVar("pod", default="")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.pod = f"[{_pod.get()}] " if _pod.get() else ""
        return super().format(record)


@contextlib.contextmanager
def pod_context(namespace: str, name: str) -> Iterator[None]:
    """Put ``[namespace/name]`` before every log line of this task."""
    token = _pod.set(f"{namespace}/{name}")
    try:
        yield
    finally:
        _pod.reset(token)


def setup(verbose: bool = False) -> None:
    """Log to standard error; the caller's file or Slurm's output file keeps it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s.%(msecs)03d %(levelname).1s %(name)s %(pod)s%(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
