"""What a Pod's status says while its job waits in Slurm's queue. Pure, but for the clock that is given.

Most jobs start at once, so an ordinary reason is told only when it lasts. A reason becomes one Event; the expected start, which
changes all the time, is told anew now and then.
"""

from __future__ import annotations

from hpk import records
from hpk.slurm import commands, states

#: An ordinary reason is told when it has lasted for so many seconds; the expected start is told anew not more often than this.
LASTING_SECONDS = 2.0
EXPECTED_START_SECONDS = 60.0


class Queue:
    """One Pod's wait. ``condition``: reason and message of the condition PodReadyToStartContainers; None: nothing to say."""

    def __init__(self) -> None:
        self.condition: tuple[str, str] | None = None
        self._since = 0.0
        self._told = ("", 0.0)
        self._event = ""

    def submitted(self, now: float) -> None:
        self.condition = None
        self._since = now

    def look(self, job: commands.Job, now: float) -> tuple[str, str, bool] | None:
        """The job is pending: return the Event (type, message) to record, and whether Slurm should be asked if it can ever run."""
        ordinary = job.reason in states.ORDINARY_REASONS
        if ordinary and now - self._since < LASTING_SECONDS:
            return None
        text = f"Slurm job {job.job_id} waits in the queue: {job.reason}"
        if job.start:
            text += f"; expected start {records.now(job.start)}"
        reason, told_at = self._told
        if job.reason != reason or now - told_at >= EXPECTED_START_SECONDS or self.condition is None:
            self.condition, self._told = ("SlurmQueued", text), (job.reason, now)
        if job.reason == self._event:
            return None
        self._event = job.reason
        return "Normal" if ordinary else "Warning", text, job.reason in states.DOUBTFUL_REASONS

    def pause(self, job: commands.Job | None) -> float:
        """Seconds after which to look again although nothing changed."""
        return EXPECTED_START_SECONDS if job is not None and job.reason == self._event else LASTING_SECONDS
