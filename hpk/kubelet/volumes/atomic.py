"""Files that change together: what Kubernetes promises for mounted ConfigMaps, Secrets, tokens and downward API fields.

    <volume>/..2026_11_24_10_00_00.<random>/key     the files
    <volume>/..data -> ..2026_11_24_10_00_00.<random>
    <volume>/key    -> ..data/key                    what containers open

An update makes a new folder and renames a new ``..data`` over the old one: readers see all of the old or all of the new. This is
upstream's layout (pkg/volume/util/atomic_writer.go); programs that watch such volumes rely on it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time

from hpk import files
from hpk.kubelet.volumes import payload

DATA = "..data"


def write(folder: str, content: payload.Payload, *, create: bool = True) -> bool:
    """Make ``folder`` hold exactly ``content``. Returns whether anything changed; after a crash at any point it can be called again.

    Raises OSError (ENOSPC, EDQUOT, ...); the old content is then still there. Without ``create`` a folder that is not there is
    such an error: the Pod that it was of is gone.
    """
    if create:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    link = os.path.join(folder, DATA)
    try:
        current = os.readlink(link)
    except OSError:
        current = ""
    if current and _same(os.path.join(folder, current), content):
        _links(folder, content)
        _remove_others(folder, current)
        return False
    name = f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime())}.{secrets.randbelow(10**10)}"
    fresh = os.path.join(folder, name)
    try:
        os.mkdir(fresh, 0o755)
        for path, file in content.items():
            target = os.path.join(fresh, path)
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            files.write_atomic(target, file.data, mode=file.mode & 0o777)
        temporary = os.path.join(folder, "..data_tmp")
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(name, temporary)
        os.rename(temporary, link)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _links(folder, content)
    _remove_others(folder, name)
    return True


def _same(folder: str, content: payload.Payload) -> bool:
    found: dict[str, payload.File] = {}
    try:
        for at, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(at, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, folder)] = payload.File(file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    except OSError:
        return False  # unreadable by its mode: written again
    return os.path.isdir(folder) and found == {path: payload.File(file.data, file.mode & 0o777) for path, file in content.items()}


def _links(folder: str, content: payload.Payload) -> None:
    """One link for each first component of a path; links to what is no longer there go away."""
    wanted = {path.split("/", 1)[0] for path in content}
    for name in wanted:
        place = os.path.join(folder, name)
        if not os.path.islink(place):
            os.symlink(f"{DATA}/{name}", place)
    for name in os.listdir(folder):
        if not name.startswith("..") and name not in wanted and os.path.islink(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))


def _remove_others(folder: str, keep: str) -> None:
    """Remove old folders, those of a crash included."""
    for name in os.listdir(folder):
        if name.startswith("..2") and name != keep:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
