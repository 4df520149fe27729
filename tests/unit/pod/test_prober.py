"""Thresholds and timing of one probe, in virtual time."""

from __future__ import annotations

from hpk.pod import prober


def test_readiness_needs_its_thresholds_in_a_row() -> None:
    worker = prober.Worker("readiness", {"successThreshold": 2, "failureThreshold": 3}, 0)
    answers = [worker.result(ok) for ok in (True, False, True, True, False, False, True, False, False, False, False)]
    assert answers == [None, None, None, True, None, None, None, None, None, False, None]


def test_liveness_speaks_once_then_waits_for_the_next_instance() -> None:
    worker = prober.Worker("liveness", {"failureThreshold": 2}, 0)
    assert [worker.result(False) for _ in range(4)] == [None, False, None, None]
    assert worker.over


def test_startup_is_over_with_its_success() -> None:
    worker = prober.Worker("startup", {"failureThreshold": 2}, 0)
    assert [worker.result(False), worker.result(True), worker.result(False)] == [None, True, None]
    assert worker.over


def test_due_times() -> None:
    worker = prober.Worker("readiness", {"initialDelaySeconds": 5, "periodSeconds": 10}, 100)
    assert worker.due == 105
    worker.begun(105)
    assert worker.due == 115
    worker.begun(140)  # the loop was held up: not three at once
    assert worker.due == 140


def test_defaults_are_the_apis() -> None:
    worker = prober.Worker("readiness", {}, 0)
    assert (worker.period, worker.timeout) == (10, 1)
    assert [worker.result(False) for _ in range(3)] == [None, None, False]
    assert worker.result(True) is True
