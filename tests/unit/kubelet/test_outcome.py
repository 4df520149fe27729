"""What the job's own output tells of its end, where Slurm's state does not."""

from __future__ import annotations

import pytest

from hpk.kubelet import outcome
from hpk.slurm import commands, states

OVER = "slurmstepd-c1: error: StepId=7.batch exceeded memory limit (422825984 > 52428800), being killed\n"


def job(state: states.JobState) -> commands.Job:
    return commands.Job("7", state, state.name, "", "c1", "c1", 1.0, 2.0, 3.0, "default/a", "/x", "")


@pytest.mark.parametrize("state", [states.JobState.FAILED, states.JobState.CANCELLED])
def test_killed_for_memory_without_control_groups(state: states.JobState) -> None:
    end = outcome.ended(job(state), None, None, OVER)
    assert (end.phase, end.container_reason, end.killed_reason) == ("Failed", "OOMKilled", "OOMKilled")


def test_a_failed_job_with_other_words() -> None:
    end = outcome.ended(job(states.JobState.FAILED), None, None, "bash: no such file\n")
    assert (end.reason, end.killed_reason) == ("SlurmJobFailed", "")
