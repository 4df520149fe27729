"""The control plane outlives the time limit of its job: a successor is queued before that, and goes on when it starts.

slurm/hpk.sbatch asks Slurm for SIGUSR1 some time before the limit. Then a copy of this very job is submitted, which asks for what
this one was given. When it runs it waits for the lock, which the present control plane gives up as soon as it sees that; where the
queue is longer than the time left, that happens shortly before the limit, and the successor continues whenever it starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping

from hpk import errors, files, paths
from hpk.bootstrap import component, jobs
from hpk.slurm import commands, states

log = logging.getLogger(__name__)

#: Environment variable with the job whose place a successor takes.
PREDECESSOR = "HPK_PREDECESSOR"
#: Environment variable with the path of the job script, as Slurm runs it (slurm/hpk.sbatch sets it).
SCRIPT = "HPK_JOB_SCRIPT"
#: Pace of the looks for the successor, and of new attempts to submit it.
LOOK_SECONDS = 2.0
RETRY_SECONDS = 30.0
#: So long before the limit the parts are stopped in order even if no successor runs yet.
STOP_SECONDS = 30.0


def environment(environ: Mapping[str, str], job_id: str) -> dict[str, str]:
    """Return the environment of the successor's submission (pure)."""
    return {**component.without_job(environ), PREDECESSOR: job_id}


def due(job: commands.Job, now: float) -> float:
    """Seconds until a successor may be submitted: not in the first half of the time limit, or short limits would chase one another."""
    if not job.start or job.end <= job.start:
        return 0.0
    return max(0.0, job.start + (job.end - job.start) / 2 - now)


class Handover:
    """``wanted`` is set by SIGUSR1."""

    def __init__(self, where: paths.Paths, slurm: commands.Slurm, job_id: str) -> None:
        self.wanted = asyncio.Event()
        self._where = where
        self._slurm = slurm
        self._job_id = job_id

    async def run(self) -> str:
        """Wait until this control plane shall stop for the sake of its successor; return why."""
        await self.wanted.wait()
        script = os.environ.get(SCRIPT, "")
        if not self._job_id or not os.path.isfile(script):
            log.warning("SIGUSR1 asks for a successor, but this is no job of slurm/hpk.sbatch: nobody follows")
            await asyncio.Event().wait()
        left = 1.0
        while left > 0:  # again, since the limit may be changed
            left = due(await self._job(), time.time())
            await asyncio.sleep(left)
        successor = await self._submit(script)
        log.info("job %s follows this one: control plane handed over when it starts", successor)
        while True:
            if await self._started(successor):
                return f"job {successor} takes over"
            job = await self._job()
            if job.end and job.end - time.time() < STOP_SECONDS:
                return f"the time limit is near; job {successor} goes on when it starts"
            await asyncio.sleep(LOOK_SECONDS)

    async def _job(self) -> commands.Job:
        """This job."""
        while True:
            try:
                return (await self._slurm.jobs())[self._job_id]
            except (errors.SlurmError, KeyError) as exc:
                log.info("cannot see our own job: %s", exc)
                await asyncio.sleep(LOOK_SECONDS)

    async def _submit(self, script: str) -> str:
        output = os.path.join(self._where.logs, jobs.OUTPUT)
        began = time.time() - 1
        while True:
            try:
                present = await jobs.control_planes(self._slurm, self._where)
                made = [job.job_id for job in present if job.job_id != self._job_id and job.submitted >= began]
                if made:  # by an earlier attempt whose answer was lost
                    return made[0]
                flags = await self._slurm.request(self._job_id)
                if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
                    flags.append(f"--cpus-per-task={cpus}")
                job_id = await jobs.submit(
                    script, [f"--output={output}", f"--comment={jobs.comment(self._where)}", *flags], environment(os.environ, self._job_id)
                )
            except (errors.SlurmError, errors.ProcessError, errors.MissingTool) as exc:
                log.warning("no successor yet: %s", exc)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            files.write_json(self._where.submitted, {"jobID": job_id})
            return job_id

    async def _started(self, successor: str) -> bool:
        try:
            job = (await self._slurm.jobs()).get(successor)
        except errors.SlurmError:
            return False
        if job is None or job.state.ended:
            log.warning("the successor, job %s, is gone; this control plane goes on to its limit", successor)
            await asyncio.Event().wait()
            return False
        return job.state is states.JobState.RUNNING
