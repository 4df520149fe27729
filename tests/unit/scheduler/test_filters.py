"""Which node a Pod may go to, with cases of kube-scheduler's own semantics."""

from __future__ import annotations

from typing import Any

import pytest

from hpk.scheduler import bind, claims, filters

Object = dict[str, Any]


def node(name: str = "hpk", labels: dict[str, str] | None = None, **spec: Any) -> Object:
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec}


def pod(**spec: Any) -> Object:
    return {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec, "status": {"conditions": []}}


def affinity(*terms: Object) -> Object:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


@pytest.mark.parametrize(
    ("toleration", "taint", "expected"),
    [
        ({"key": "a", "operator": "Exists"}, {"key": "a", "value": "1", "effect": "NoSchedule"}, True),
        ({"key": "a", "operator": "Exists", "effect": "NoExecute"}, {"key": "a", "effect": "NoSchedule"}, False),
        ({"operator": "Exists"}, {"key": "anything", "effect": "NoExecute"}, True),
        ({"key": "a", "value": "1"}, {"key": "a", "value": "1", "effect": "NoSchedule"}, True),
        ({"key": "a", "operator": "Equal", "value": "1"}, {"key": "a", "value": "2", "effect": "NoSchedule"}, False),
        ({"key": "a"}, {"key": "a", "effect": "NoSchedule"}, True),
        ({"key": "b", "operator": "Exists"}, {"key": "a", "effect": "NoSchedule"}, False),
        ({"key": "n", "operator": "Gt", "value": "5"}, {"key": "n", "value": "6", "effect": "NoSchedule"}, True),
        ({"key": "n", "operator": "Lt", "value": "5"}, {"key": "n", "value": "6", "effect": "NoSchedule"}, False),
        ({"key": "n", "operator": "Lt", "value": "5"}, {"key": "n", "value": "x", "effect": "NoSchedule"}, False),
    ],
)
def test_tolerates(toleration: Object, taint: Object, expected: bool) -> None:
    assert filters.tolerates(toleration, taint) is expected


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["a", "b"], True),
        ("In", ["b"], False),
        ("NotIn", ["a"], False),
        ("NotIn", ["b"], True),
        ("Exists", None, True),
        ("DoesNotExist", None, False),
        ("Gt", ["1"], False),  # "a" is no number
    ],
)
def test_operators(operator: str, values: list[str] | None, expected: bool) -> None:
    expression = {"key": "zone", "operator": operator, **({"values": values} if values else {})}
    wanted = pod(affinity=affinity({"matchExpressions": [expression]}))
    assert (filters.refusal(wanted, node(labels={"zone": "a"})) is None) is expected


@pytest.mark.parametrize(("operator", "bound", "expected"), [("Gt", "7", True), ("Gt", "8", False), ("Lt", "9", True), ("Lt", "8", False)])
def test_numbers(operator: str, bound: str, expected: bool) -> None:
    wanted = pod(affinity=affinity({"matchExpressions": [{"key": "cores", "operator": operator, "values": [bound]}]}))
    assert (filters.refusal(wanted, node(labels={"cores": "8"})) is None) is expected


@pytest.mark.parametrize(
    ("operator", "expected"), [("In", False), ("NotIn", True), ("Exists", False), ("DoesNotExist", True), ("Gt", False)]
)
def test_a_missing_label(operator: str, expected: bool) -> None:
    values = {} if operator.endswith("xist") or operator == "Exists" else {"values": ["1"]}
    wanted = pod(affinity=affinity({"matchExpressions": [{"key": "none", "operator": operator, **values}]}))
    assert (filters.refusal(wanted, node()) is None) is expected


def test_terms_are_alternatives_and_an_empty_one_matches_nothing() -> None:
    wrong = {"matchExpressions": [{"key": "x", "operator": "Exists"}]}
    right = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["hpk"]}]}
    assert filters.refusal(pod(affinity=affinity(wrong, right)), node()) is None
    assert filters.refusal(pod(affinity=affinity({})), node()) == filters.AFFINITY
    assert filters.refusal(pod(affinity=affinity({**wrong, **right})), node()) == filters.AFFINITY


def test_selector_needs_every_label() -> None:
    wanted = pod(nodeSelector={"a": "1", "b": "2"})
    assert filters.refusal(wanted, node(labels={"a": "1"})) == filters.AFFINITY
    assert filters.refusal(wanted, node(labels={"a": "1", "b": "2", "c": "3"})) is None


def test_preferences_do_not_count() -> None:
    soft = {"key": "a", "effect": "PreferNoSchedule"}
    assert filters.refusal(pod(), node(taints=[soft])) is None
    preferred = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}}
    assert filters.refusal(pod(affinity=preferred), node()) is None


def test_cordoned() -> None:
    assert filters.refusal(pod(), node(unschedulable=True)) == filters.UNSCHEDULABLE
    daemon = pod(tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}])
    assert filters.refusal(daemon, node(unschedulable=True)) is None


def test_first_fit_and_message() -> None:
    taint = {"key": "a", "effect": "NoExecute"}
    nodes = [node("a", taints=[taint]), node("b", unschedulable=True), node("c", taints=[taint]), node("d", {"x": "1"})]
    found, message = filters.first_fit(pod(), nodes)
    assert found is nodes[3]
    assert message == ""
    found, message = filters.first_fit(pod(nodeSelector={"x": "2"}), nodes)
    assert found is None
    assert message == (
        "0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable, "
        "2 node(s) had untolerated taint(s)."
    )
    assert filters.first_fit(pod(), []) == (None, "no nodes available to schedule pods")


def test_trimmed_pod_decides_the_same() -> None:
    whole = pod(
        nodeSelector={"x": "1"},
        affinity={**affinity({"matchExpressions": [{"key": "x", "operator": "Exists"}]}), "podAffinity": {"big": "x" * 1000}},
        containers=[{"name": "c", "env": [{"name": "SECRET", "value": "x"}]}],
        volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "emptyDir": {}}],
        schedulingGates=[{"name": "g"}],
    )
    small = bind.trim_pod(whole)
    assert "containers" not in small["spec"]
    assert "podAffinity" not in small["spec"]["affinity"]
    assert small["spec"]["schedulingGates"] == [{"name": "g"}]
    assert claims.names(small) == [("c", False)]
    for candidate in (node(labels={"x": "1"}), node(), node(labels={"x": "2"})):
        assert filters.refusal(small, candidate) == filters.refusal(whole, candidate)
