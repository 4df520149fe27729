"""Programs that were fetched or built before, in ``bin`` of the cache folder: a file per program and its key beside it.

One builder at a time (flock). A program appears under its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import time
from collections.abc import Iterator

from hpk import errors, files
from hpk.bootstrap.image import progress

#: Pace of trying the lock again, in seconds.
_PACE = 0.5


class Cache:
    """The cache below ``root``. Raises StateError when it cannot be written."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._bin = os.path.join(root, "bin")
        self._work = os.path.join(root, "work")

    @contextlib.contextmanager
    def locked(self, show: progress.Progress) -> Iterator[None]:
        """Be the only builder here; waits for another one and says so. An OSError inside, as of a full disk, becomes a StateError."""
        try:
            os.makedirs(self._bin, exist_ok=True)
            fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise errors.StateError(
                f"the cache {self.root} cannot be written: {exc.strerror}", hint="name another folder: HPK_CACHE"
            ) from exc
        try:
            self._acquire(fd, show)
            shutil.rmtree(self._work, ignore_errors=True)  # of a builder that was killed
            os.mkdir(self._work, 0o700)
            for left in glob.glob(os.path.join(glob.escape(self._bin), "*.new")):
                os.unlink(left)
            yield
        except BrokenPipeError:
            raise  # of our own output
        except OSError as exc:
            raise errors.StateError(
                f"{exc.filename or self.root}: {exc.strerror or exc}", hint="is the disk or the quota full? HPK_CACHE names another folder"
            ) from exc
        finally:
            shutil.rmtree(self._work, ignore_errors=True)
            os.close(fd)

    def _acquire(self, fd: int, show: progress.Progress) -> None:
        told = False
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    return None  # a file system without locks: every file is still put in place whole
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if not told:
                show.say("  waiting: another `hpk image build` is at work here")
                told = True
            time.sleep(_PACE)

    def path(self, program: str) -> str:
        return os.path.join(self._bin, program)

    def _key(self, program: str) -> str:
        return os.path.join(self._bin, f".{program}.key")

    def has(self, program: str, key: str) -> bool:
        """Whether ``program`` is there and was made from what ``key`` stands for."""
        try:
            with open(self._key(program), encoding="ascii") as file:
                return file.read().strip() == key and os.path.getsize(self.path(program)) > 0
        except (FileNotFoundError, UnicodeDecodeError):
            return False

    def temporary(self, name: str) -> str:
        """Return a path that is gone when the lock is given back."""
        return os.path.join(self._work, name)

    @contextlib.contextmanager
    def new(self, program: str, key: str) -> Iterator[str]:
        """Give the path to write ``program`` to; it becomes the program when the block ends without an exception."""
        path = self.path(program) + ".new"
        try:
            yield path
            os.chmod(path, 0o755)  # noqa: S103 - nothing secret; a site may share its cache
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._key(program))  # first: the old key must never stand beside the new program
            os.rename(path, self.path(program))
            files.write_atomic(self._key(program), key + "\n", mode=0o644)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
