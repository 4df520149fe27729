"""One control plane per state directory: a lock file with owner and lease that works on shared file systems.

The file appears by link(2), which NFS makes atomic, where flock may be local to a node or missing. It names the owner (host,
job, process) and never changes; its modification time is the lease, set anew every RENEW_SECONDS by the owner's own clock
(sites keep their clocks together). A dead owner's lock is taken over

- at once, when the owner ran on this very boot of this node and its process is gone, or it was an earlier start of our own job;
- at once, when Slurm says that its job has ended;
- else when the lease has run out, unless Slurm says that the job still runs (a suspended job must not meet a successor).

An owner that could not renew for LEASE_SECONDS, or finds another's lock in its place, must stop: ``keep()`` returns then.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable

from hpk import errors, files

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
RENEW_SECONDS = 10.0
#: After a takeover, wait and look again: two that judged the same lock dead must not both win.
SETTLE_SECONDS = 0.3

#: What Slurm says of a job: True it is there (pending, running, suspended, completing), False it has ended, None no answer.
JobAlive = Callable[[str], Awaitable["bool | None"]]


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds the lock. ``boot`` tells one boot and one pid namespace of a host from the next: only there does ``pid`` mean anything."""

    host: str
    boot: str
    pid: int
    started: str
    """Start time of the process in clock ticks since boot, /proc/PID/stat field 22: a pid may be used again."""
    cluster: str
    """SLURM_CLUSTER_NAME: one home may serve several clusters, and a job's number means nothing on another one."""
    job_id: str
    restart: int
    """SLURM_RESTART_COUNT: a requeued job keeps its number."""
    token: str

    @classmethod
    def here(cls, host: str, cluster: str = "", job_id: str = "", restart: int = 0) -> Owner:
        pid = os.getpid()
        return cls(host, _boot(), pid, process_start(pid) or "", cluster, job_id, restart, secrets.token_hex(8))

    def describe(self) -> str:
        job = f"job {self.job_id}" if self.job_id else f"process {self.pid}"
        return f"{job} on {self.host}"


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """Return the start time of process ``pid``, or None when there is no such process (a zombie is none either)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Lock:
    """The lock at ``path``, for ``owner``."""

    def __init__(self, path: str, owner: Owner, *, job_alive: JobAlive, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._owner = owner
        self._job_alive = job_alive
        self._clock = clock

    async def acquire(self, *, after: str = "") -> None:
        """Take the lock or raise StateError with one line that says who has it. Job ``after`` is waited for: it hands over to us."""
        attempts = 5
        while attempts:
            if self._link():
                return
            attempts -= 1
            holder, age = read(self._path, clock=self._clock)
            if holder is None and age is None:
                continue  # released just now
            reason = await self._dead(holder, age or 0.0)
            if reason is None and after and holder is not None and holder.job_id == after:
                attempts += 1
                await self._changed(holder)
                continue
            if reason is None:
                raise self._refusal(holder, age or 0.0)
            log.warning("taking over the lock of %s: %s", holder.describe() if holder else "a damaged lock file", reason)
            if await self._steal(holder):
                return
        raise errors.StateError(f"{self._path}: other control planes are starting at the same time", hint="try again in a minute")

    def _link(self) -> bool:
        temporary = f"{self._path}.{self._owner.token}.tmp"
        files.write_json(temporary, dataclasses.asdict(self._owner), sync=True)
        try:
            now = self._clock()
            os.utime(temporary, (now, now))
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                # over NFS a repeated request may say so although the first one succeeded: the count of links tells
                return os.stat(temporary).st_nlink == 2
            return True
        finally:
            os.unlink(temporary)

    async def _dead(self, holder: Owner | None, age: float) -> str | None:
        """Return why the lock may be taken over, or None. ``age`` is the time since the lease was renewed, in seconds."""
        expired = age > LEASE_SECONDS
        if holder is None:
            return "it is unreadable and its lease has run out" if expired else None
        if holder.boot and holder.boot == self._owner.boot and process_start(holder.pid) != holder.started:
            return "its process is gone"
        same_cluster = holder.cluster == self._owner.cluster
        if holder.job_id and same_cluster and holder.job_id == self._owner.job_id and holder.restart < self._owner.restart:
            return "it was an earlier start of this job"
        alive = await self._job_alive(holder.job_id) if holder.job_id and same_cluster else None
        if alive is False:
            return f"job {holder.job_id} has ended"
        if expired and alive is None and not (holder.boot and holder.boot == self._owner.boot):
            return f"it was not renewed for {age:.0f} s"
        return None

    async def _changed(self, holder: Owner) -> None:
        """Wait until the lock is no longer this holder's, but not for ever: it may die."""
        for _ in range(20):
            if read(self._path, clock=self._clock)[0] != holder:
                return
            await asyncio.sleep(0.25)

    def _refusal(self, holder: Owner | None, age: float) -> errors.StateError:
        folder = os.path.dirname(self._path)
        if holder is None:
            return errors.StateError(f"{self._path} is damaged", hint=f"try again in {LEASE_SECONDS:.0f} s")
        remedy = "`hpk down` ends it" if holder.job_id else f"end process {holder.pid} on {holder.host} first"
        silent = f", which has been silent for {age:.0f} s" if age > LEASE_SECONDS else ""
        return errors.StateError(f"{folder} is in use by the control plane of {holder.describe()}{silent}", hint=remedy)

    async def _steal(self, holder: Owner | None) -> bool:
        """Move the dead lock away, put ours there, and see after a moment whether it stayed."""
        grave = f"{self._path}.{self._owner.token}.dead"
        try:
            os.rename(self._path, grave)
        except FileNotFoundError:
            return False
        buried, _ = read(grave, clock=self._clock)
        if buried != holder:  # somebody was quicker and this is their fresh lock: give it back
            try:
                os.link(grave, self._path)
            except FileExistsError:
                pass  # a third one came in between; the owner of the moved lock sees it at its next look and stops
            os.unlink(grave)
            return False
        os.unlink(grave)
        if not self._link():
            return False
        await asyncio.sleep(SETTLE_SECONDS)
        return self.mine()

    def mine(self) -> bool:
        """Tell whether the lock is there and ours."""
        holder, _ = read(self._path, clock=self._clock)
        return holder == self._owner

    def renew(self) -> bool:
        """Renew the lease; False when the lock is not ours any more. Raises OSError when the file system fails."""
        if not self.mine():
            return False
        now = self._clock()
        os.utime(self._path, (now, now))
        return True

    async def keep(self) -> str:
        """Renew until that fails for good; return why. The caller then stops everything that writes to the state directory."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if not self.renew():
                    return "another control plane has taken the lock"
                renewed = self._clock()
            except OSError as exc:
                log.warning("lock not renewed: %s", exc)
                if self._clock() - renewed > LEASE_SECONDS - RENEW_SECONDS:
                    return f"the lock could not be renewed for {self._clock() - renewed:.0f} s: {exc}"

    def release(self) -> None:
        """Remove the lock if it is ours."""
        if self.mine():
            os.unlink(self._path)


def read(path: str, *, clock: Callable[[], float] = time.time) -> tuple[Owner | None, float | None]:
    """Return the holder and the seconds since the lease was renewed: (None, None) without a lock, (None, age) for a damaged one."""
    try:
        with open(path, "rb") as file:  # opening makes NFS ask the server for the present times
            raw = file.read()
            age = clock() - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None, None
    try:
        return Owner(**json.loads(raw)), age
    except (ValueError, TypeError):
        return None, age
