"""From a plan to exactly one Slurm job, and back from disk to what is known of it.

Submitting: ``submission.json`` says "submitting" before sbatch and "submitted" with the job's id after it. Whoever finds
"submitting", or gets no clear answer, looks for the Pod's UID in Slurm before sbatch is called again: twice, with a pause, since a
request that a stopped controller has received may still become a job. That a job once ran is also seen by its report.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

from hpk import config as configuration
from hpk import errors, files, paths, records
from hpk.kubelet import faults, outcome, pleg, podplan, script
from hpk.slurm import commands

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Seconds between two looks for a job whose submission is in doubt.
SETTLE_SECONDS = 5.0
#: Longest pause between two questions to a Slurm that does not answer.
MAX_PAUSE = 30.0
#: So much of the end of the job's output is looked through for the final report, in bytes; a report has 12 KiB of messages at most.
MAX_LAST_WORDS = 256 * 1024


class Submission:
    """What is known of a Pod's submission (records.py: submission)."""

    __slots__ = ("attempt", "job_id", "state", "submitted_at")

    def __init__(self, record: Object | None = None) -> None:
        record = record or {}
        self.state: str = str(record.get("state") or "")
        self.job_id: str = str(record.get("jobID") or "")
        self.submitted_at: str = str(record.get("submittedAt") or "")
        self.attempt: int = int(record.get("attempt") or 0)

    @property
    def in_doubt(self) -> bool:
        return self.state == "submitting"

    def record(self, uid: str) -> Object:
        return {
            "uid": uid,
            "state": self.state,
            "jobID": self.job_id,
            "submittedAt": self.submitted_at,
            "attempt": self.attempt,
        }


class SlurmProvider:
    """Stateless: all that lasts is in the Pod's folder and in Slurm."""

    def __init__(self, *, config: configuration.Config, slurm: commands.Slurm, generator: pleg.Pleg) -> None:
        self._config = config
        self._slurm = slurm
        self._pleg = generator

    def read(self, pod_dir: paths.PodDir) -> Submission:
        """What the disk says. A damaged record counts as a submission in doubt."""
        try:
            return Submission(files.read_json(pod_dir.submission))
        except (ValueError, OSError, TypeError, AttributeError) as exc:
            log.warning("%s cannot be used, looking for the job in Slurm: %s", pod_dir.submission, exc)
            return Submission({"state": "submitting"})

    def report(self, pod_dir: paths.PodDir) -> Object | None:
        """The supervisor's last report on disk, None when there is none yet or it cannot be read.

        A status file that is missing, damaged or older than the end is made up for by the last words in the job's output.
        """
        try:
            report = files.read_json(pod_dir.status)
        except (ValueError, OSError) as exc:
            log.warning("%s: %s", pod_dir.status, exc)
            report = None
        if isinstance(report, dict) and outcome.final(report):
            return report
        return _last_words(pod_dir.output) or (report if isinstance(report, dict) else None)

    def output(self, pod_dir: paths.PodDir) -> str:
        """Last words of the batch script."""
        return _tail(pod_dir.output, outcome.MAX_OUTPUT)

    def write(self, pod_dir: paths.PodDir, plan: podplan.PodPlan) -> None:
        """Write script and plan. Raises InvalidInput for what cannot stand in a script, OSError."""
        text = script.job_script(plan)
        kubelet = self._config.kubelet
        record = script.plan_record(plan, log_max_bytes=kubelet.log_max_bytes, log_max_files=kubelet.log_max_files)
        files.write_json(pod_dir.plan, record)
        files.write_atomic(pod_dir.script, text, mode=0o700)

    async def submit(self, uid: str, pod_dir: paths.PodDir, submission: Submission) -> None:
        """sbatch the Pod's script. Afterwards ``submission`` has the job's id.

        Raises Refused: there is no job. SlurmUnknown: there may be one, ``submission`` is in doubt. OSError: nothing was submitted.
        """
        submission.state, submission.job_id = "submitting", ""
        submission.attempt += 1
        submission.submitted_at = records.now()
        faults.point("before-submitting")
        await asyncio.to_thread(files.write_json, pod_dir.submission, submission.record(uid), sync=True)
        faults.point("before-sbatch")
        try:
            submission.job_id = await self._slurm.submit(pod_dir.script)
        except (commands.Refused, errors.MissingTool):
            submission.state = "refused"
            await self.save(uid, pod_dir, submission)
            raise
        faults.point("after-sbatch")
        submission.state = "submitted"
        await self.save(uid, pod_dir, submission)
        faults.point("after-submitted")

    async def save(self, uid: str, pod_dir: paths.PodDir, submission: Submission) -> None:
        """Write the record; when that fails the older one says "submitting", which is safe: the job is looked for."""
        try:
            await asyncio.to_thread(files.write_json, pod_dir.submission, submission.record(uid))
        except OSError as exc:
            log.warning("%s: %s", pod_dir.submission, exc)

    async def locate(self, uid: str, pod_dir: paths.PodDir) -> str:
        """Find the job of a submission in doubt; return its id, or "" when surely there is none. Waits while Slurm is away."""
        pause = 1.0
        looks = 0
        while True:
            report = self.report(pod_dir)
            if report is not None and report.get("jobID"):
                return str(report["jobID"])
            try:
                job = await self._pleg.look(uid)
            except errors.SlurmUnknown:
                looks = 0
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE)
                continue
            if job is not None:
                return job.job_id
            looks += 1
            if looks > 1:
                return ""
            await asyncio.sleep(SETTLE_SECONDS)


def _tail(path: str, size: int) -> str:
    """The last ``size`` bytes of a file, "" when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _last_words(path: str) -> Object | None:
    """The final report in the job's output, if the supervisor came to say it."""
    for line in reversed(_tail(path, MAX_LAST_WORDS).splitlines()):
        if line.startswith(records.LAST_WORDS):
            try:
                report = json.loads(line.removeprefix(records.LAST_WORDS))
            except ValueError:
                return None  # cut by a full disk
            return report if isinstance(report, dict) else None
    return None
