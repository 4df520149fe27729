"""sizeLimit of emptyDir volumes: a Pod that exceeds one is evicted, as by upstream's local storage eviction (pkg/kubelet/eviction).

Only volumes that have a limit are looked at, every ten seconds, a piece at a time so that nothing else of the Pod has to wait.
Imported only by Pods that have such a volume.
"""

from __future__ import annotations

import os

from hpk.pod import loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

#: Seconds between two looks at all volumes (upstream's housekeeping of evictions).
PAUSE = 10.0
#: Files looked at in one piece, and the pause between two pieces in seconds: a tenth of one CPU at the most.
PIECE = 500
BREATH = 0.02
#: Grace period in seconds of a Pod that is evicted (immediateEvictionGracePeriodSeconds).
GRACE = 1.0


def limited(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The plan's volumes that have a limit."""
    return [volume for volume in plan.get("jobVolumes", []) if volume["kind"] == "emptyDir" and volume.get("sizeLimit")]


class Limits:
    """Calls ``exceeded(message)`` once when a volume takes more than its limit."""

    def __init__(self, looper: loop.Loop, volumes: list[dict[str, Any]], exceeded: Callable[[str], None]) -> None:
        self._loop = looper
        self._volumes = volumes
        self._exceeded = exceeded
        self._left: list[dict[str, Any]] = []
        self._walk: Generator[int, None, None] | None = None
        self._loop.later(PAUSE, self._round)

    def _round(self) -> None:
        self._left = list(self._volumes)
        self._next()

    def _next(self) -> None:
        if not self._left:
            self._loop.later(PAUSE, self._round)
            return
        self._walk = usage(self._left[0]["path"])
        self._piece()

    def _piece(self) -> None:
        assert self._walk is not None
        volume, used = self._left[0], next(self._walk, None)
        if used is None:
            self._left.pop(0)
            self._next()
        elif used > volume["sizeLimit"]:
            text = volume.get("limitText") or str(volume["sizeLimit"])
            self._exceeded(f'Usage of EmptyDir volume "{volume["name"]}" exceeds the limit "{text}". ')
        else:
            self._loop.later(BREATH, self._piece)


def usage(folder: str) -> Generator[int, None, None]:
    """Yield the bytes on disk found so far below ``folder``, from time to time and at the end. Links are not followed, and files with
    several names count once. What its owner hides even from us does not count."""
    total, count = 0, 0
    seen: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError:
            continue  # removed meanwhile, or without permissions
        with entries:
            for entry in entries:
                try:
                    about = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                except OSError:
                    continue
                if about.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if (about.st_dev, about.st_ino) in seen:
                        continue
                    seen.add((about.st_dev, about.st_ino))
                total += about.st_blocks * 512
                count += 1
                if count % PIECE == 0:
                    yield total
    yield total
