"""What lies in the image cache, which Pods use it, and what may go: the housekeeping beside images.py, whose files these are.

An image is in use while the plan of any Pod on disk names it: plans are written before sbatch and stay until the Pod is deleted,
so this holds for queued, running and ended Pods, whatever happened to the kubelet. The time of a record (``<hex>.json``) is when
a Pod asked for the image last; one that was asked for just now is kept too, since its Pod's plan may not be written yet.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import glob
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from hpk import files, paths

log = logging.getLogger(__name__)

#: Images that were asked for within this many seconds stay (upstream's imageMinimumGCAge).
MIN_AGE = 120.0
#: A record's time is set anew when it is older than this many seconds: not by each of a thousand Pods.
TOUCH_AGE = 30.0
#: Names of the images of Pods.
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Stored:
    """One image of the cache."""

    hex: str
    """Its manifest's digest without ``sha256:``."""
    path: str
    size: int
    """Bytes on disk."""
    whole: bool
    """Whether it has a record and may be run; else it is left from a pull that was killed."""
    used_at: float
    """Seconds since the epoch when a Pod asked for it last."""
    pulled_at: float
    source: str
    names: tuple[str, ...] = ()
    """References that name it now."""


def stored(where: paths.Paths) -> list[Stored]:
    """The images of the cache, the one used longest ago first. The control plane's own image is none of them."""
    names = collections.defaultdict(list)
    for path in glob.glob(os.path.join(glob.escape(where.images), "refs", "*.json")):
        record = read_record(path)
        if record is not None:
            names[str(record.get("manifest"))].append(str(record.get("ref")))
    found = []
    for path in glob.glob(os.path.join(glob.escape(where.images), "*.sif")):
        name = os.path.basename(path)[:-4]
        if not _NAME.fullmatch(name):
            continue
        try:
            about = os.stat(path)
            used = os.stat(_record(path)).st_mtime
        except FileNotFoundError:
            if not os.path.exists(path):
                continue  # removed meanwhile
            used = about.st_mtime
        record = read_record(_record(path)) or {}
        whole = record.get("size") == about.st_size
        refs = tuple(sorted(names.get(f"sha256:{name}", [])))
        found.append(
            Stored(name, path, about.st_size, whole, used, float(record.get("pulledAt") or used), str(record.get("source") or ""), refs)
        )
    return sorted(found, key=lambda image: image.used_at)


def in_use(where: paths.Paths) -> Mapping[str, int]:
    """How many Pods use each image, by ``Stored.hex``."""
    count: collections.Counter[str] = collections.Counter()
    for path in glob.glob(os.path.join(glob.escape(where.pods), "*", os.path.basename(paths.PodDir("").plan))):
        plan = read_record(path) or {}
        containers = [*(plan.get("initContainers") or []), *(plan.get("containers") or [])]
        count.update({os.path.basename(str(one.get("imagePath")))[:-4] for one in containers if str(one.get("imagePath")).endswith(".sif")})
    return count


def touch(path: str, now: float | None = None) -> bool:
    """Note that the image file ``path`` was asked for; False when it is not in the cache any more."""
    now = time.time() if now is None else now
    try:
        if now - os.stat(_record(path)).st_mtime > TOUCH_AGE:
            os.utime(_record(path), (now, now))
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass  # a file system that is full or read-only now: then nothing is removed from it either
    return True


def remove(where: paths.Paths, image: Stored, *, min_age: float = MIN_AGE) -> bool:
    """Remove one image and what names it. False: somebody asked for it just now, or a pull of it is under way. Raises OSError."""
    lock = os.open(os.path.join(where.images, f"{image.hex}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(lock):
            return False
        record, aside = _record(image.path), f"{_record(image.path)}.gone"
        try:
            # Moved aside first: whoever asks from now on does not find it and pulls, and whoever asked before has set its time.
            os.rename(record, aside)
        except FileNotFoundError:
            if time.time() - os.stat(image.path).st_mtime < min_age:
                return False
        else:
            if time.time() - os.stat(aside).st_mtime < min_age:
                os.rename(aside, record)
                return False
        for path in (image.path, aside):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    except FileNotFoundError:
        return False  # another process was quicker
    finally:
        os.close(lock)
    for path in glob.glob(os.path.join(glob.escape(where.images), "refs", "*.json")):
        named = read_record(path)
        if named is None or named.get("manifest") == f"sha256:{image.hex}":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return True


def collect(where: paths.Paths, max_bytes: int, *, min_age: float = MIN_AGE) -> tuple[list[Stored], int]:
    """Remove what no Pod uses, longest unused first, until the images take no more than ``max_bytes``; and what killed pulls left.

    Returns the images removed and the bytes that are left. Raises OSError.
    """
    images = stored(where)
    total = sum(image.size for image in images)
    removed: list[Stored] = []
    if total <= max_bytes and all(image.whole for image in images):
        return removed, total
    used = in_use(where)
    for image in images:
        if image.hex in used or (image.whole and total <= max_bytes):
            continue
        if remove(where, image, min_age=min_age):
            removed.append(image)
            total -= image.size
    return removed, total


def read_record(path: str) -> dict[str, Any] | None:
    """A JSON object from a file of the cache; None when it is not there or damaged, which is the same: it will be written again."""
    try:
        record = files.read_json(path)
    except (ValueError, OSError):
        return None
    return record if isinstance(record, dict) else None


def try_lock(fd: int) -> bool:
    """Lock an open file; False when another holds it. File systems without locks count as locked by us."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no lock service (some NFS, Lustre without -o flock): renames still keep the cache whole
    return True


def _record(path: str) -> str:
    return path.removesuffix(".sif") + ".json"
