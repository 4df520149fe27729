"""Which node may a Pod go to: pure functions of Pod and Node, in the words of kube-scheduler's plugins.

Resources are not looked at: a job that does not fit now waits in Slurm's queue, and Slurm says so itself when it never can.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Object = dict[str, Any]

UNSCHEDULABLE = "node(s) were unschedulable"
TAINTED = "node(s) had untolerated taint(s)"
AFFINITY = "node(s) didn't match Pod's node affinity/selector"
NO_NODES = "no nodes available to schedule pods"

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_CORDONED = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "value": ""}


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and _INTEGER.fullmatch(text) else None


def tolerates(toleration: Object, taint: Object) -> bool:
    """Tell whether ``toleration`` lets a Pod bear ``taint`` (core/v1 Toleration)."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    mine, theirs = toleration.get("value", ""), taint.get("value", "")
    if operator == "Equal":
        return bool(mine == theirs)
    wanted, found = _integer(mine), _integer(theirs)
    if wanted is None or found is None:
        return False
    return {"Lt": found < wanted, "Gt": found > wanted}.get(operator, False)


def _untolerated(pod: Object, taints: Sequence[Object]) -> bool:
    tolerations = pod["spec"].get("tolerations") or []
    return any(
        taint.get("effect") in ("NoSchedule", "NoExecute") and not any(tolerates(toleration, taint) for toleration in tolerations)
        for taint in taints
    )


def matches(expression: Object, values: dict[str, str]) -> bool:
    """One NodeSelectorRequirement (or that of a LabelSelector) against labels or fields."""
    found = values.get(expression["key"])
    wanted = expression.get("values") or []
    operator = expression["operator"]
    if operator == "In":
        return found is not None and found in wanted
    if operator == "NotIn":
        return found is None or found not in wanted
    if operator == "Exists":
        return found is not None
    if operator == "DoesNotExist":
        return found is None
    number, bound = _integer(found), _integer(wanted[0] if len(wanted) == 1 else None)
    if number is None or bound is None:
        return False
    return {"Gt": number > bound, "Lt": number < bound}.get(operator, False)


def _term_matches(term: Object, node: Object) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False  # an empty term matches nothing
    labels = node["metadata"].get("labels") or {}
    return all(matches(expression, labels) for expression in expressions) and all(
        matches(expression, {"metadata.name": node["metadata"]["name"]}) for expression in fields
    )


def selects(selector: Object, node: Object) -> bool:
    """Tell whether a core/v1 NodeSelector (of a Pod's affinity or of a volume) selects ``node``."""
    return any(_term_matches(term, node) for term in selector.get("nodeSelectorTerms") or [])


def _affine(pod: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or selects(required, node)


def refusal(pod: Object, node: Object) -> str | None:
    """Why ``pod`` may not run on ``node``; None when it may."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable") and not any(tolerates(toleration, _CORDONED) for toleration in pod["spec"].get("tolerations") or []):
        return UNSCHEDULABLE
    if _untolerated(pod, spec.get("taints") or []):
        return TAINTED
    return None if _affine(pod, node) else AFFINITY


def first_fit(pod: Object, nodes: Sequence[Object], also: Callable[[Object], str | None] | None = None) -> tuple[Object | None, str]:
    """Return the first node for ``pod``, or None and the message that says what is wrong with each.

    ``also`` tells what else is wrong with a node, None for nothing.
    """
    refusals: Counter[str] = Counter()
    for node in nodes:
        reason = refusal(pod, node) or (also(node) if also else None)
        if reason is None:
            return node, ""
        refusals[reason] += 1
    return None, unavailable(len(nodes), *(f"{count} {reason}" for reason, count in refusals.items()))


def unavailable(nodes: int, *reasons: str) -> str:
    """kube-scheduler's sentence for a Pod that fits nowhere."""
    if nodes == 0:
        return NO_NODES
    return f"0/{nodes} nodes are available: {', '.join(sorted(reasons))}."
