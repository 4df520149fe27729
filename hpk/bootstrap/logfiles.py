"""Log files of the components: bounded, and a source of the one line that tells why a component died."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil

#: A log is moved aside at each start, and copied aside when it grows beyond this size while the component runs.
MAX_BYTES = 10 * 1024 * 1024
KEEP = 3
_TAIL_BYTES = 16 * 1024
_KLOG_ERROR = re.compile(r"[EF]\d{4} ")


def rotate(path: str) -> None:
    """Move ``path`` to ``path.1``, ``path.1`` to ``path.2`` and so on; the oldest goes."""
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return
    for number in range(KEEP, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    os.replace(path, f"{path}.1")


def rotate_running(path: str) -> None:
    """Bound the log of a running component, which keeps the file open (for appending): copy it aside and empty it.

    Lines that are written in between are lost, as with logrotate's copytruncate.
    """
    try:
        if os.path.getsize(path) <= MAX_BYTES:
            return
        for number in range(KEEP, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}.{number - 1}", f"{path}.{number}")
        shutil.copyfile(path, f"{path}.1")
        os.chmod(f"{path}.1", 0o600)
        os.truncate(path, 0)
    except OSError:
        pass  # full disk, quota: the component matters more than its log


def prune(folder: str, pattern: str, keep: int = 20) -> None:
    """Remove all but the newest ``keep`` files of ``folder`` that match the glob ``pattern``: outputs of former jobs."""
    found = glob.glob(os.path.join(glob.escape(folder), pattern))
    for path in sorted(found, key=_changed, reverse=True)[keep:]:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _changed(path: str) -> float:
    try:
        return os.path.getmtime(path)
    except OSError:
        return 0.0


def last_words(path: str, limit: int = 400) -> str:
    """Return the last line of a log that looks like an error, else the last line; cut to ``limit`` characters."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    marks = ('"level":"fatal"', '"level":"error"', "Error:", "error:", "FATAL", "panic:", "Listen:", "command failed")
    telling = [line for line in lines[-30:] if _KLOG_ERROR.match(line) or any(mark in line for mark in marks)]
    return ((telling or lines) or [""])[-1][:limit]
