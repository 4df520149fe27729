"""The Slurm jobs of the control plane, as up, down and status (and the lock) see them."""

from __future__ import annotations

import dataclasses
import os

from hpk import errors, procs

#: ``#SBATCH --comment`` of slurm/hpk.sbatch, by which its job is known whoever submitted it.
COMMENT = "hpk control-plane"
#: Beginning of the comment of a Pod's job (hpk/kubelet/script.py).
POD_COMMENT = "hpk uid="
TIMEOUT = 30.0
_ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")


@dataclasses.dataclass(frozen=True)
class Job:
    """One line of squeue."""

    job_id: str
    state: str
    reason: str
    node: str
    comment: str

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


def _squeue(*flags: str) -> list[Job]:
    answer = procs.run(["squeue", "--noheader", "--states=all", "--format=%i|%T|%r|%N|%k", *flags], timeout=TIMEOUT)
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:
            return []
        raise errors.SlurmUnknown(f"squeue: {' '.join(answer.stderr.split())}")
    jobs = []
    for line in answer.stdout.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) == 5:
            jobs.append(Job(*fields))
    return jobs


def mine() -> list[Job]:
    """Return the user's jobs that Slurm still knows, the ended ones too. Raises MissingTool, SlurmUnknown."""
    try:
        return _squeue(f"--user={os.getuid()}")
    except errors.ProcessError as exc:
        raise errors.SlurmUnknown(exc.message) from exc


def get(job_id: str) -> Job | None:
    """Return the job, or None when Slurm does not know it (any more). Raises as mine()."""
    try:
        return next((job for job in _squeue(f"--jobs={job_id}") if job.job_id == job_id), None)
    except errors.ProcessError as exc:
        raise errors.SlurmUnknown(exc.message) from exc


def alive(job_id: str) -> bool | None:
    """Tell whether the job has yet to end; None when Slurm cannot be asked."""
    try:
        job = get(job_id)
    except (errors.SlurmUnknown, errors.MissingTool):
        return None
    return job is not None and not job.ended


def control_plane(known: str = "") -> Job | None:
    """Return the user's live control-plane job: the one with our comment or the id ``known``; the newest of several."""
    found = [job for job in mine() if not job.ended and (job.comment == COMMENT or job.job_id == known)]
    return max(found, key=lambda job: int(job.job_id) if job.job_id.isdigit() else 0, default=None)


def pods() -> list[Job]:
    """Return the live jobs of the user's Pods."""
    return [job for job in mine() if not job.ended and job.comment.startswith(POD_COMMENT)]


def submit(script: str, flags: list[str]) -> str:
    """Submit ``script`` and return the job's id. Raises SlurmError with sbatch's own words."""
    answer = procs.run(["sbatch", "--parsable", *flags, script], timeout=TIMEOUT)
    if answer.returncode != 0:
        raise errors.SlurmError(f"sbatch: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip().split(";")[0]


def cancel(job_ids: list[str], *, signal: str = "") -> None:
    """scancel; with ``signal`` only that signal is sent, to the batch script alone. Raises SlurmError."""
    flags = [f"--signal={signal}", "--batch"] if signal else []
    answer = procs.run(["scancel", *flags, *job_ids], timeout=TIMEOUT)
    if answer.returncode != 0:
        raise errors.SlurmError(f"scancel: {' '.join(answer.stderr.split())}")
