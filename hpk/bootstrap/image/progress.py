"""One line per step of a long command: what, how much, how long, and a tick at its end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

#: Seconds between two updates of a line on a terminal.
_PACE = 0.2


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


class Step:
    """A step under way. ``detail`` is what its last line says."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._live = stream.isatty()
        self._shown = 0.0
        self.detail = ""

    def update(self, text: str) -> None:
        """Show how far it is; only on a terminal, and not too often."""
        now = time.monotonic()
        if self._live and now - self._shown > _PACE:
            self._shown = now
            self._stream.write(f"\r\033[K  {self._label}  {text}")
            self._stream.flush()

    def announce(self, text: str) -> None:
        """Say once that this will take long."""
        if self._live:
            self._shown = 0.0
            self.update(text)
        else:
            self._stream.write(f"  {self._label}  {text}\n")
            self._stream.flush()

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\033[K")


class Progress:
    """Writes steps to ``stream`` (standard output)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._tick = "✓" if (self._stream.encoding or "").lower().startswith("utf") else "ok"

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[Step]:
        """Run one step; its line gets a tick and the seconds, or disappears when it fails (the error then tells)."""
        step = Step(self._stream, f"{label:<32}")
        began = time.monotonic()
        step.update("")
        try:
            yield step
        except BaseException:
            step._clear()
            raise
        step._clear()
        self._stream.write(f"{self._tick} {label:<32} {step.detail:<44} {time.monotonic() - began:7.1f} s\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
