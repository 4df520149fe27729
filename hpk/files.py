"""Small file operations that must not leave half of anything behind, whatever dies when.

Used on shared file systems (NFS, Lustre): a file appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # the in-job supervisor imports this module: typing, secrets (and OpenSSL with it) would cost it a third more memory
    from typing import Any


def private_dir(path: str) -> str:
    """Create ``path`` and its missing parents with mode 0700 and return it."""
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        private_dir(parent)  # os.makedirs() would make the parents with the umask's mode
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    return path


def write_atomic(path: str, data: bytes | str, *, mode: int = 0o600, sync: bool = False) -> None:
    """Write ``data`` to a temporary file beside ``path`` and rename it over ``path``.

    A reader sees the old or the new content, never a part. ``sync`` also forces the content to stable storage first, for what
    must survive the node's death (the record of a submitted job, keys). Raises OSError (ENOSPC, EDQUOT, ...); the temporary
    file is then removed and the old content still there.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(raw)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)  # the umask must not decide
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # the first error is the one to tell
        raise


def write_json(path: str, value: Any, *, mode: int = 0o600, sync: bool = False) -> None:
    """write_atomic() of ``value`` as one line of JSON."""
    write_atomic(path, json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n", mode=mode, sync=sync)


def read_json(path: str) -> Any | None:
    """Return the JSON value in ``path``, or None when the file does not exist. Raises ValueError for a damaged file."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None
