"""The Slurm jobs of the control plane, as up, down and status (and the lock) see them."""

from __future__ import annotations

from collections.abc import Collection

from hpk import errors, procs
from hpk.slurm import commands, states

#: ``#SBATCH --comment`` of slurm/hpk.sbatch, by which its job is known whoever submitted it.
COMMENT = "hpk control-plane"


async def alive(slurm: commands.Slurm, job_id: str) -> bool | None:
    """Tell whether the job has yet to end; None when Slurm cannot be asked."""
    try:
        job = (await slurm.jobs()).get(job_id)
    except (errors.SlurmUnknown, errors.MissingTool):
        return None
    return job is not None and not job.state.ended


async def control_plane(slurm: commands.Slurm, known: Collection[str] = ()) -> commands.Job | None:
    """Return the user's live control-plane job, by our comment or, where the site drops comments, its id; of several the one
    that runs. Raises SlurmUnknown, MissingTool.

    A number alone is not enough: it may be that of a job of another cluster, over the same home.
    """
    jobs = (await slurm.jobs()).values()
    found = [job for job in jobs if not job.state.ended and (job.comment == COMMENT or (job.job_id in known and not job.comment))]
    return max(found, key=lambda job: (job.state is states.JobState.RUNNING, job.job_id in known), default=None)


async def pods(slurm: commands.Slurm) -> list[commands.Job]:
    """Return the live jobs of the user's Pods. Raises as control_plane()."""
    return [job for job in (await slurm.jobs()).values() if not job.state.ended and job.pod_uid]


async def submit(script: str, flags: list[str]) -> str:
    """Submit ``script`` and return the job's id. Raises SlurmError with sbatch's own words.

    With the user's own environment: it is theirs what SBATCH_ACCOUNT and the like say, and it goes into the job.
    """
    answer = await procs.arun(["sbatch", "--parsable", *flags, script])
    if answer.returncode != 0:
        words = " ".join(answer.stderr.replace("sbatch: error: ", "").split())
        raise errors.SlurmError(f"sbatch: {words}", hint="flags are in the job script's #SBATCH lines, and after -- of `hpk up`")
    return answer.stdout.strip().split(";")[0]
