"""How a Pod ended, from the state of its Slurm job and the supervisor's last report. Pure.

A final report is the truth about containers. What only Slurm knows is added: preemption, node failure, the time limit, memory.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hpk.kubelet import status
from hpk.slurm import commands, states

Object = dict[str, Any]

#: Reason of a report after SIGTERM: only Slurm knows why it was sent.
TERMINATED = "Terminated"
#: Reason by which the supervisor says that a volume exceeded its limit.
EVICTED = "Evicted"
#: slurmstepd's words in the job's output where memory limits are kept without control groups (slurm.conf: OverMemoryKill). The
#: state of such a job is FAILED.
MEMORY_WORDS = "exceeded memory limit"
#: Longest piece of the job's own output in a message, in characters.
MAX_OUTPUT = 1024


@dataclasses.dataclass(frozen=True)
class Stop:
    """An end that the kubelet itself asked for. A reason makes the Pod Failed; without one (deletion) the containers decide."""

    reason: str = ""
    message: str = ""


def final(report: Object | None) -> bool:
    """Whether the supervisor says that all is over."""
    return report is not None and report.get("phase") in status.TERMINAL


def needs_slurm(report: Object) -> bool:
    """Whether a final report leaves open what Slurm's state of the job may tell."""
    if report["phase"] != "Failed":
        return False
    ends = [
        (item.get("state") or {}).get("terminated") or {}
        for field in ("initContainerStatuses", "containerStatuses")
        for item in report.get(field) or []
    ]
    killed = any(end.get("exitCode") == status.UNKNOWN_CODE and end.get("reason") != "OOMKilled" for end in ends)
    return killed or report.get("reason") == TERMINATED


def ended(job: commands.Job | None, report: Object | None, stop: Stop | None, output: str = "") -> status.Ended:
    """Return the end of a Pod whose job ended, or whose report is final.

    ``job`` None: it never came to a job. ``stop``: the kubelet ended it on purpose. ``output``: last words of the batch script, told
    where no report tells more.
    """
    slurm = _by_slurm(job, output)
    if final(report):
        assert report is not None
        end = status.Ended(report["phase"], report.get("reason") or "", report.get("message") or "")
        if end.reason == EVICTED:
            end = dataclasses.replace(end, disruption=("TerminationByKubelet", end.message))
        if stop is not None:
            if stop.reason:
                end = dataclasses.replace(end, phase="Failed", reason=stop.reason, message=stop.message)
            elif end.reason == TERMINATED:
                end = dataclasses.replace(end, reason="", message="")
            return end
        if end.phase == "Failed" and slurm is not None:
            vague = end.reason in ("", TERMINATED) and bool(slurm.reason)
            end = dataclasses.replace(
                end,
                reason=slurm.reason if vague else end.reason,
                message=slurm.message if vague else end.message,
                killed_reason=slurm.killed_reason,
                disruption=slurm.disruption or end.disruption,
            )
        return end
    if stop is not None:
        return status.Ended("Failed", stop.reason, stop.message)
    if slurm is not None:
        return slurm
    assert job is not None
    if job.state is states.JobState.COMPLETED:  # the supervisor says so by its exit code, for a Pod that succeeded only
        text = f"Slurm job {job.job_id} ended as COMPLETED; what else is known of its containers is lost"
        return status.Ended("Succeeded", container_reason="Completed", container_message=text, exit_code=0)
    words = f": {output[-MAX_OUTPUT:].strip()}" if output.strip() else ""
    how = f"Slurm job {job.job_id} ended as {job.word.split(' ')[0]} without a report of its containers{words}"
    return status.Ended("Failed", "SlurmJobFailed", how, container_message=how)


def _by_slurm(job: commands.Job | None, output: str) -> status.Ended | None:
    """What Slurm alone knows, or None when it knows no more than the report."""
    if job is None:
        return None
    name = f"Slurm job {job.job_id}"
    state = job.state
    if state in (states.JobState.FAILED, states.JobState.CANCELLED) and MEMORY_WORDS in output:
        state = states.JobState.OUT_OF_MEMORY
    match state:
        case states.JobState.NODE_FAIL:
            text = f"{name} ended because its node failed ({job.nodes or 'unknown node'})"
            return status.Ended("Failed", "NodeFail", text, container_message=text, disruption=("NodeFail", text))
        case states.JobState.PREEMPTED:
            text = f"{name} was preempted by another job"
            return status.Ended("Failed", "Preempted", text, container_message=text, disruption=("PreemptionByScheduler", text))
        case states.JobState.TIMEOUT:
            text = f"{name} reached its time limit"
            return status.Ended("Failed", "DeadlineExceeded", text, container_message=text)
        case states.JobState.OUT_OF_MEMORY:
            text = f"{name} was ended because it used more memory than it asked for"
            return status.Ended("Failed", "", "", container_reason="OOMKilled", container_message=text, killed_reason="OOMKilled")
        case states.JobState.CANCELLED:
            who = f" by uid {job.word.rpartition(' ')[2]}" if " by " in job.word else ""
            text = f"{name} was cancelled{who} outside of Kubernetes"
            return status.Ended("Failed", "SlurmJobCancelled", text, container_message=text)
        case states.JobState.GONE:
            text = f"{name} is no longer known to Slurm and left no final report"
            return status.Ended("Failed", "SlurmJobGone", text, container_message=text)
    return None
