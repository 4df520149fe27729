"""Recorder: repeats are counted, floods are cut, nothing is ever raised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpk.kube import errors, events


class Played:
    """Takes Events like a Client; ``failures`` are raised first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.created: list[dict[str, Any]] = []
        self.patched: list[tuple[str, dict[str, Any]]] = []

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        self.created.append(json.loads(json.dumps(body)))
        return body

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        self.patched.append((path, body))
        return body


POD = {"metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "5"}}


def recorder(client: Any) -> events.Recorder:
    return events.Recorder(client, "kubelet", "hpk")


async def test_an_event_is_upstreams() -> None:
    client = Played()
    record = recorder(client)
    record.event(POD, "Normal", "Pulled", "words", field_path="spec.containers{main}")
    await record.stop()
    (made,) = client.created
    assert made["metadata"]["name"].startswith("p.")
    assert made["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "n",
        "name": "p",
        "uid": "u",
        "resourceVersion": "5",
        "fieldPath": "spec.containers{main}",
    }
    assert (made["type"], made["reason"], made["message"], made["count"]) == ("Normal", "Pulled", "words", 1)
    assert made["source"] == {"component": "kubelet", "host": "hpk"}


async def test_repeats_are_counted() -> None:
    client = Played()
    record = recorder(client)
    for _ in range(3):
        record.event(POD, "Warning", "BackOff", "again")
    record.event({**POD, "metadata": {**POD["metadata"], "uid": "other"}}, "Warning", "BackOff", "again")
    await record.stop()
    assert len(client.created) == 2
    assert [body["count"] for _, body in client.patched] == [2, 3]
    assert client.patched[0][0].endswith("/events/" + client.created[0]["metadata"]["name"])


async def test_an_expired_event_is_made_again() -> None:
    client = Played()
    record = recorder(client)
    record.event(POD, "Warning", "BackOff", "again")
    await record.flush()
    client.failures.append(errors.NotFound(404, "NotFound", "gone"))
    record.event(POD, "Warning", "BackOff", "again")
    await record.stop()
    assert len(client.created) == 2


async def test_many_different_messages_are_combined() -> None:
    client = Played()
    record = recorder(client)
    for number in range(14):
        record.event(POD, "Warning", "Failed", f"attempt {number}")
    await record.stop()
    assert [made["message"] for made in client.created][-1] == "(combined from similar events): attempt 10"
    assert len(client.created) == 11
    assert len(client.patched) == 3


async def test_a_flood_from_one_object_is_cut() -> None:
    client = Played()
    record = recorder(client)
    for number in range(60):
        record.event(POD, "Normal", f"Reason{number}", "x")
    record.event({"metadata": {"name": "q", "namespace": "n", "uid": "v"}}, "Normal", "Reason", "x")
    await record.stop()
    assert len(client.created) == events.SPAM_BURST + 1


async def test_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(seconds: float) -> None:
        return None

    monkeypatch.setattr("hpk.kube.events.asyncio.sleep", at_once)
    client = Played(errors.Unreachable("away"), errors.Unreachable("away"))
    record = recorder(client)
    record.event(POD, "Normal", "A", "x")
    record.event({}, "Normal", "B", "an object without a name")
    await record.stop()
    assert [made["reason"] for made in client.created] == ["A"]
    client.failures.append(errors.Forbidden(403, "Forbidden", "namespace is being terminated"))
    record.event(POD, "Normal", "C", "x")
    record.event(POD, "Normal", "D", "x")
    await record.stop()
    assert [made["reason"] for made in client.created] == ["A", "D"]


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_QUEUE", 3)
    client = Played()
    record = recorder(client)
    for number in range(10):
        record.event(POD, "Normal", f"R{number}", "x")
    await record.stop()
    assert [made["reason"] for made in client.created] == ["R0", "R1", "R2"]


async def test_long_messages_are_cut_and_cluster_objects_go_to_default() -> None:
    client = Played()
    record = recorder(client)
    record.event({"kind": "Node", "metadata": {"name": "hpk", "uid": "u"}}, "Normal", "Starting", "x" * 5000)
    await record.stop()
    assert len(client.created[0]["message"]) == 1024
    assert client.created[0]["metadata"]["namespace"] == "default"
