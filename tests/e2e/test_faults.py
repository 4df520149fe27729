"""A dozen faults, one after the other, really injected: no Pod lost, none doubled, every end true. `make faults` injects 300."""

from __future__ import annotations

import random

import pytest

from tests.faults import kinds, runner
from tests.faults.victim import Victim
from tests.testbed import Bed

pytestmark = pytest.mark.e2e

DOZEN = (
    "kubelet killed before sbatch",
    "disk of the Pods' folders full for some seconds",
    "kubelet killed after sbatch",
    "sbatch loses its answer, the job exists",
    "kubelet killed before final status",
    "status file of an ended Pod removed, unseen",
    "sbatch times out, the job exists",
    "supervisor killed",
    "squeue prints garbage",
    "channel cut for some seconds",
    "slurmctld frozen for 5-60 s",
    "kubelet killed before delete",
)


def test_a_dozen_faults(bed: Bed) -> None:
    victim = Victim(bed, "bob")
    try:
        victim.start()
        result = runner.run(victim, [kinds.KINDS[name] for name in DOZEN], random.Random(4), outage=10.0)
    finally:
        victim.stop()
    assert not result.problems, "\n".join(result.problems)
    total = result.total
    assert (total.injected, total.lost, total.doubled, total.wrong) == (12, 0, 0, 0)
    assert total.pods >= 15
