"""Pod lifecycle event generator: one paced squeue for all Pods, and the changes it shows.

A Pod without a job to follow costs nothing, and with none at all Slurm is not called. Supervisors report by themselves; Slurm is
asked for what they cannot tell: why a job waits, and that a job has ended. Not to be answered changes nothing for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable

from hpk import errors
from hpk.slurm import commands, states

log = logging.getLogger(__name__)

#: Seconds for which a poke makes the pace fast.
FAST_FOR = 6.0
FAST_SECONDS = 0.5
#: How much slower than configured the pace is when all jobs run and all supervisors have a channel, which breaks when a node dies.
QUIET_FACTOR = 5.0
#: squeue may take at most this part of the controller's and our time, but one slow answer does not make us blind.
LOAD = 0.1
MAX_LOAD_PAUSE = 15.0
MAX_FAST_PAUSE = 2.0
MAX_BACKOFF = 30.0
#: Looks, over at least so many seconds, that must miss a job before it counts as gone. Accounting may know it before.
GONE_LOOKS = 3
GONE_SECONDS = 10.0
#: Ids in one sacct.
HISTORY_BATCH = 500


@dataclasses.dataclass
class _Tracked:
    """One Pod's job: ``job`` as last told, since when and how often it was missed; ``silent``: its supervisor has no channel."""

    job_id: str
    silent: bool = True
    job: commands.Job | None = None
    missed_since: float = 0.0
    missed: int = 0

    @property
    def quiet(self) -> bool:
        return self.job is not None and self.job.state is states.JobState.RUNNING and not self.silent


class Pleg:
    """``on_job(uid, job)`` is called for each change of a tracked Pod's job; it must not block."""

    def __init__(self, slurm: commands.Slurm, on_job: Callable[[str, commands.Job], None], *, pace: float = 2.0) -> None:
        self._slurm = slurm
        self._on_job = on_job
        self._pace = pace
        self._tracked: dict[str, _Tracked] = {}
        self._looks: list[asyncio.Future[dict[str, list[commands.Job]]]] = []
        self._changed = asyncio.Event()
        self._fast_until = 0.0
        self._last = float("-inf")
        self._took = 0.0
        self._failures = 0
        self.healthy = True
        """Whether Slurm answered last."""

    def track(self, uid: str, job_id: str, *, silent: bool = True) -> None:
        """Follow the job of a Pod from now on. ``silent``: its supervisor has no channel (yet)."""
        known = self._tracked.get(uid)
        if known is None or known.job_id != job_id:
            known = self._tracked[uid] = _Tracked(job_id)
        known.silent = silent
        self.poke()

    def untrack(self, uid: str) -> None:
        self._tracked.pop(uid, None)

    def poke(self) -> None:
        """Something is about to change: look often for a while."""
        self._fast_until = asyncio.get_running_loop().time() + FAST_FOR
        self._changed.set()

    async def all_jobs(self) -> dict[str, list[commands.Job]]:
        """Jobs by Pod UID as a squeue that begins after this call shows them. Raises SlurmUnknown."""
        look: asyncio.Future[dict[str, list[commands.Job]]] = asyncio.get_running_loop().create_future()
        self._looks.append(look)
        self._changed.set()
        return await look

    async def look(self, uid: str) -> commands.Job | None:
        """The job of a Pod, None if the controller surely has none. One squeue serves all who ask. Raises SlurmUnknown."""
        return accepted((await self.all_jobs()).get(uid, []))

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._wait()
            looks, self._looks = self._looks, []
            try:
                await self._relist(looks)
            finally:
                for look in looks:
                    if not look.done():
                        look.set_exception(errors.SlurmUnknown("squeue failed"))

    def _interval(self, now: float) -> float:
        if self._failures:
            return min(self._pace * 2.0**self._failures, MAX_BACKOFF)
        pace, longest = self._pace, MAX_LOAD_PAUSE
        if now < self._fast_until:
            pace, longest = min(FAST_SECONDS, pace), MAX_FAST_PAUSE
        elif all(item.quiet for item in self._tracked.values()):
            pace *= QUIET_FACTOR
        return max(pace, min(self._took / LOAD, longest))

    async def _wait(self) -> None:
        """Until the next squeue is due: somebody asks, or there is something to follow and its time has come."""
        loop = asyncio.get_running_loop()
        while not self._looks:
            self._changed.clear()
            left: float | None = None
            if self._tracked:
                left = self._last + self._interval(loop.time()) - loop.time()
                if left <= 0:
                    return
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    async def _relist(self, looks: list[asyncio.Future[dict[str, list[commands.Job]]]]) -> None:
        loop = asyncio.get_running_loop()
        begin = self._last = loop.time()
        try:
            jobs = await self._slurm.jobs()
        except errors.HPKError as exc:
            self._failures += 1
            if self.healthy:
                log.warning("Slurm does not answer, nothing is concluded from that: %s", exc.message)
            self.healthy = False
            self._last = loop.time()
            for look in looks:
                look.set_exception(exc if isinstance(exc, errors.SlurmUnknown) else errors.SlurmUnknown(exc.message))
            return
        self._took = loop.time() - begin
        if not self.healthy:
            log.info("Slurm answers again")
        self.healthy, self._failures = True, 0
        by_uid = group(jobs.values())
        for look in looks:
            if not look.done():
                look.set_result(by_uid)
        missing = []
        for uid, item in list(self._tracked.items()):
            found = by_uid.get(uid)
            if found:
                item.missed = 0
                self._tell(uid, item, _same(found, item.job_id))
            else:
                item.missed += 1
                item.missed_since = item.missed_since if item.missed > 1 else begin
                missing.append(uid)
        if missing:
            await self._search(missing)

    async def _search(self, uids: list[str]) -> None:
        """Jobs that the controller does not list any more: accounting may tell how they ended."""
        now = asyncio.get_running_loop().time()
        for start in range(0, len(uids), HISTORY_BATCH):
            batch = {uid: self._tracked[uid] for uid in uids[start : start + HISTORY_BATCH] if uid in self._tracked}
            try:
                known = await self._slurm.history(item.job_id for item in batch.values())
            except errors.HPKError as exc:
                log.info("accounting does not answer: %s", exc.message)
                known = {}
            for uid, item in batch.items():
                job = known.get(item.job_id)
                if job is not None and job.state.ended and job.pod_uid in ("", uid):
                    self._tell(uid, item, job)
                elif item.missed >= GONE_LOOKS and now - item.missed_since >= GONE_SECONDS:
                    self._tell(uid, item, gone(item.job_id))

    def _tell(self, uid: str, item: _Tracked, job: commands.Job) -> None:
        if job != item.job and self._tracked.get(uid) is item:
            item.job = job
            item.job_id = job.job_id
            self._on_job(uid, job)


def gone(job_id: str) -> commands.Job:
    """A job of which nobody knows anything any more."""
    return commands.Job(job_id, states.JobState.GONE, "unknown", "", "", "", 0.0, 0.0, 0.0, "", "", "")


def accepted(jobs: Iterable[commands.Job]) -> commands.Job | None:
    """A Pod's job among those with its UID. What sbatch was refused leaves a failed record behind, which is no job."""
    return commands.choose(job for job in jobs if not (job.reason == "BadConstraints" and job.state is states.JobState.FAILED))


def group(jobs: Iterable[commands.Job]) -> dict[str, list[commands.Job]]:
    """Jobs by the Pod UID that they carry."""
    by_uid: dict[str, list[commands.Job]] = {}
    for job in jobs:
        if uid := job.pod_uid:
            by_uid.setdefault(uid, []).append(job)
    return by_uid


def _same(jobs: list[commands.Job], job_id: str) -> commands.Job:
    """The job that we submitted, if it is there; ids are used again, so the UID was compared first."""
    for job in jobs:
        if job.job_id == job_id:
            return job
    found = commands.choose(jobs)
    assert found is not None
    return found
