"""The Slurm jobs of the control plane, as up, down and status (and the lock) see them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from hpk import errors, paths, procs
from hpk.slurm import commands, states

#: ``#SBATCH --comment`` of slurm/hpk.sbatch, by which its job is known whoever submitted it.
COMMENT = "hpk control-plane"

#: Name of a job's output in the folder of the logs, so that we can quote its last words.
OUTPUT = "hpk-%j.out"


async def alive(slurm: commands.Slurm, job_id: str) -> bool | None:
    """Tell whether the job has yet to end; None when Slurm cannot be asked."""
    try:
        job = (await slurm.jobs()).get(job_id)
    except (errors.SlurmUnknown, errors.MissingTool):
        return None
    return job is not None and not job.state.ended


def comment(where: paths.Paths) -> str:
    """Return the comment of the job that runs the control plane of this state directory; ``hpk up`` sets it where it is not ~/.hpk."""
    return COMMENT if where.root == paths.Paths.default({}).root else f"{COMMENT} {where.root}"


async def control_planes(slurm: commands.Slurm, where: paths.Paths, known: Collection[str] = ()) -> list[commands.Job]:
    """Return the live jobs of this state directory's control plane, the one that runs first, then its successors in the queue.

    They are known by their comment or, where the site drops comments or another one was given, by their number (``known``). A
    number alone is not enough: it may be that of a job of another cluster, over the same home. Raises SlurmUnknown, MissingTool.
    """
    wanted = comment(where)
    jobs = [job for job in (await slurm.jobs()).values() if not job.state.ended]
    found = [job for job in jobs if job.comment == wanted or (job.job_id in known and (not job.comment or job.comment.startswith(COMMENT)))]
    return sorted(found, key=lambda job: (job.state is not states.JobState.RUNNING, job.job_id not in known))


async def control_plane(slurm: commands.Slurm, where: paths.Paths, known: Collection[str] = ()) -> commands.Job | None:
    """Return the first of control_planes()."""
    found = await control_planes(slurm, where, known)
    return found[0] if found else None


async def pods(slurm: commands.Slurm, where: paths.Paths) -> list[commands.Job]:
    """Return the live jobs of this state directory's Pods: they work in its folders. Raises as control_plane()."""
    jobs = (await slurm.jobs()).values()
    return [job for job in jobs if not job.state.ended and job.pod_uid and job.work_dir.startswith(os.path.join(where.pods, ""))]


async def submit(script: str, flags: list[str], env: Mapping[str, str] | None = None) -> str:
    """Submit ``script`` and return the job's id. Raises SlurmError with sbatch's own words.

    With the user's own environment: it is theirs what SBATCH_ACCOUNT and the like say, and it goes into the job.
    """
    answer = await procs.arun(["sbatch", "--parsable", *flags, script], env=env)
    if answer.returncode != 0:
        words = " ".join(answer.stderr.replace("sbatch: error: ", "").split())
        raise errors.SlurmError(f"sbatch: {words}", hint="flags are in the job script's #SBATCH lines, and after -- of `hpk up`")
    return answer.stdout.strip().split(";")[0]
