"""Ending a Pod's job: first its supervisor is asked, which knows the grace period and hooks, then Slurm, harder each time.

queued              scancel
supervisor there    ``stop`` on its channel
no channel          SIGTERM to the batch script alone, which is the supervisor
grace and a margin later    scancel: everything gets SIGTERM, then SIGKILL; again until the job has ended
"""

from __future__ import annotations

import asyncio
import calendar
import logging
import time
from typing import Any, Protocol

from hpk import errors
from hpk.kubelet import channel, outcome
from hpk.slurm import commands, states

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Seconds beyond the grace period that the supervisor has for SIGKILL and its farewell.
MARGIN = 10.0
#: Seconds that a supervisor which has just started, or lost the kubelet, has to dial before it is signalled by Slurm.
DIAL_SECONDS = 3.0
#: Seconds between two scancels of one job.
AGAIN = 10.0
#: The supervisor keeps activeDeadlineSeconds itself; the kubelet acts only when it did not for so many seconds.
DEADLINE_SLACK = 10.0


def now() -> float:
    """Seconds of the event loop's clock."""
    return asyncio.get_running_loop().time()


def epoch(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time in UTC; 0 for anything else."""
    try:
        return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0


def grace_of_spec(pod: Object) -> float:
    seconds = pod["spec"].get("terminationGracePeriodSeconds")
    return 30.0 if seconds is None else float(seconds)


def grace_of_deletion(pod: Object) -> float:
    """Seconds that a deleted Pod has, as upstream's calculateEffectiveGracePeriod: at least one."""
    seconds = pod["metadata"].get("deletionGracePeriodSeconds")
    return max(1.0, grace_of_spec(pod) if seconds is None else float(seconds))


class Worker(Protocol):
    """What a Stopper sees of a Pod's worker."""

    uid: str
    job: commands.Job | None
    report: Object | None
    submission: Any
    _kit: Any


class Stopper:
    """One Pod's way to its end. ``stop`` is told to the supervisor and decides what the end is called."""

    def __init__(self, stop: outcome.Stop, grace: float) -> None:
        self.stop = stop
        self._begin = now()
        self._end = self._begin + grace
        self._told = float("-inf")  # the end that the supervisor was told of last
        self._told_by: object = None
        self._signalled = False
        self._cancelled = float("-inf")

    def shorten(self, grace: float) -> None:
        """A later deletion may only leave less time."""
        self._end = min(self._end, now() + grace)

    async def act(self, worker: Worker) -> float:
        """Do what is due; the seconds after which to come again."""
        time_now = now()
        job, job_id = worker.job, worker.submission.job_id
        if worker.report is None and (job is None or job.state is states.JobState.PENDING):
            if job is not None:
                await self._cancel(worker, time_now)
            else:
                worker._kit.pleg.poke()
            return 2.0
        if time_now >= self._end + MARGIN:
            if time_now - self._cancelled >= AGAIN:
                log.warning("the Pod has not ended in time: cancelling Slurm job %s", job_id)
            await self._cancel(worker, time_now)
            return AGAIN
        channels: channel.ChannelServer = worker._kit.channels
        peer = channels.peer(worker.uid)
        if peer is not None:
            news = peer is not self._told_by or self._end < self._told - 0.5
            if news and channels.stop_pod(worker.uid, max(0.0, self._end - time_now), self.stop.reason, self.stop.message):
                self._told, self._told_by = self._end, peer
        elif not self._signalled and time_now - self._begin >= DIAL_SECONDS:
            self._signalled = await self._quietly(worker._kit.slurm.cancel(job_id, signal="TERM", batch=True))
        elif not self._signalled:
            return self._begin + DIAL_SECONDS - time_now + 0.01
        return self._end + MARGIN - time_now + 0.01

    async def _cancel(self, worker: Worker, now: float) -> None:
        if now - self._cancelled >= AGAIN and await self._quietly(worker._kit.slurm.cancel(worker.submission.job_id)):
            self._cancelled = now
        worker._kit.pleg.poke()

    async def _quietly(self, call: Any) -> bool:
        try:
            await call
        except errors.SlurmError as exc:
            log.info("%s", exc.message)
            return False
        return True
