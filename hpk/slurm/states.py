"""Slurm's job states and reasons as data. The tables follow squeue(1) (JOB STATE CODES, JOB REASON CODES) of 22.05 to 26.x."""

from __future__ import annotations

import enum
import re


class JobState(enum.Enum):
    """What a job is doing, as far as a Pod's kubelet must tell apart."""

    PENDING = "pending"
    """In the queue, held, or put back there."""
    RUNNING = "running"
    """Has its nodes and has begun; also suspended, being configured, or cleaning up afterwards (COMPLETING)."""
    COMPLETED = "completed"
    """The batch script ended with exit code 0."""
    FAILED = "failed"
    """The batch script ended with another exit code, or could not be launched."""
    CANCELLED = "cancelled"
    """By scancel, of the user or an administrator, or by us."""
    TIMEOUT = "timeout"
    """Reached its time limit, or its DEADLINE."""
    NODE_FAIL = "node_fail"
    """A node died or did not boot."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed a process of it for the memory limit."""
    PREEMPTED = "preempted"
    """Had to go for another job."""
    UNKNOWN = "unknown"
    """Slurm said a word that we do not know, or has not answered. Never taken for an end."""
    GONE = "gone"
    """Slurm answers and surely has no such job: its record was purged. Nothing tells how it ended."""

    @property
    def ended(self) -> bool:
        return self not in (JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN)


_WORDS = {
    "PENDING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "CONFIGURING": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "POWER_UP_NODE": JobState.RUNNING,
    "EXPEDITING": JobState.PENDING,
    "COMPLETED": JobState.COMPLETED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "REVOKED": JobState.CANCELLED,
    "CANCELLED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "PREEMPTED": JobState.PREEMPTED,
}

#: Reasons of a pending job that pass by themselves: no reason to warn anybody.
ORDINARY_REASONS = frozenset({"None", "Resources", "Priority", "BeginTime", "Cleaning", "Prolog", "JobHoldMaxRequeue", "Licenses"})

#: Reasons of a pending job for which Slurm may find, when asked, that no set of nodes could ever run it (sbatch --test-only).
DOUBTFUL_REASONS = frozenset({"PartitionConfig", "PartitionNodeLimit", "BadConstraints", "NodeConfig", "BadNodeList"})

#: sbatch's words for what another day, other limits or another load may allow.
_MAY_PASS = re.compile(
    r"temporarily unable|temporarily unavailable|try again|accounting/QOS policy|MaxSubmit|MaxJobs|Grp\w+|submit limit|"
    r"(?:partition|nodes?) (?:is |are )?(?:not available|DOWN|busy)|in use|credential|authentication|Munge|I/O error|disk space|"
    r"pathname already exists|standby|shutdown|Too many|maximum number|not yet|database",
    re.IGNORECASE,
)
#: Limits of one job's size: waiting does not help, only another Pod or other limits.
_PER_JOB_LIMIT = re.compile(r"(?:QOS|Assoc)(?:Max|Min)\w*(?:PerJob|Wall)\w*", re.IGNORECASE)
#: Words of the controller that no retry changes.
_NEVER = re.compile(
    r"invalid|not available|can ?not be satisfied|not permitted|denied|exceed|too (?:big|large|long)|violates|disabled|unsupported|"
    r"not supported|requires|must |than permitted",
    re.IGNORECASE,
)
#: The request may or may not have reached the controller: look before asking again.
_NO_ANSWER = re.compile(
    r"Unable to contact|Socket timed out|Zero Bytes|Communication connection failure|Communication shutdown|Connection (?:refused|reset|"
    r"timed out)|Unexpected message|Message receive failure|Message send failure|Transport endpoint|No route to host|slurm_receive_msg|"
    r"Insane message length|Incompatible versions|controller not responding|Unable to resolve|DNS SRV",
    re.IGNORECASE,
)


def parse(word: str) -> JobState:
    """Return the state for squeue's or sacct's word; ``CANCELLED by 1001`` and truncation marks are understood."""
    return _WORDS.get(word.strip().rstrip("+").partition(" ")[0].upper(), JobState.UNKNOWN)


def is_no_answer(words: str) -> bool:
    """Whether a command's error text means that the controller was not reached, or its answer was lost."""
    return _NO_ANSWER.search(words) is not None


def is_permanent(words: str) -> bool:
    """Whether sbatch's refusal will be the same tomorrow: a bad flag, an impossible size, an unknown name.

    A refusal by the controller that is not known here counts as one that may pass: waiting visibly does less harm than failing.
    """
    if "Batch job submission failed" not in words and "allocation failure" not in words:
        return not _MAY_PASS.search(words)  # sbatch itself did not like the script
    if _PER_JOB_LIMIT.search(words):
        return True
    if _MAY_PASS.search(words) and "Requested node configuration" not in words:
        return False
    return _NEVER.search(words) is not None
