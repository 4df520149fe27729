"""Restart policies with rules (KEP-5307) and Go's way to print durations."""

from __future__ import annotations

from typing import Any

import pytest

from hpk.pod import restart


def rule(operator: str, *values: int) -> dict[str, Any]:
    return {"action": "Restart", "exitCodes": {"operator": operator, "values": list(values)}}


@pytest.mark.parametrize(
    ("pod", "container", "rules", "init", "code", "again"),
    [
        ("Never", None, [], False, 1, False),
        ("Never", "Always", [], False, 0, True),
        ("Always", "Never", [], False, 1, False),
        ("Always", None, [], True, 0, False),
        ("Always", None, [], True, 1, True),
        ("Never", "Never", [rule("In", 42)], False, 42, True),
        ("Never", "Never", [rule("In", 42)], False, 1, False),
        ("Never", "Never", [rule("NotIn", 42)], False, 1, True),
        ("Never", "OnFailure", [rule("In", 42)], False, 1, True),
    ],
)
def test_should_restart(pod: str, container: str | None, rules: list[dict[str, Any]], init: bool, code: int, again: bool) -> None:
    assert restart.should_restart(pod, container, rules, init, code) is again


@pytest.mark.parametrize(("seconds", "text"), [(10, "10s"), (80, "1m20s"), (300, "5m0s")])
def test_go_duration(seconds: float, text: str) -> None:
    assert restart.go_duration(seconds) == text
