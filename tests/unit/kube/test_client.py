"""Client: retries, errors, paging and watches against a scripted server. The real one: tests/component/test_client.py."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from hpk.kube import client as kube_client
from hpk.kube import errors
from tests.unit.kube.fake import error_event, event, served, status


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_client, "RETRY_DELAYS", (0.001, 0.001, 0.001))


async def _drop(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def test_paths() -> None:
    assert kube_client.pods_path() == "/api/v1/pods"
    assert kube_client.pods_path("n", "p", "status") == "/api/v1/namespaces/n/pods/p/status"
    assert kube_client.path("apps/v1", "deployments", "n") == "/apis/apps/v1/namespaces/n/deployments"
    assert kube_client.path("v1", "nodes", name="a/../b") == "/api/v1/nodes/a%2F..%2Fb"


async def test_query_and_token() -> None:
    async with served({"ok": 1}, token="t0ken") as (server, client):
        await client.get("/x", fieldSelector="spec.nodeName=,a!=b c", pretty=False, none=None)
        assert server.requests[0][2] == {"fieldSelector": "spec.nodeName=,a!=b c", "pretty": "false"}


@pytest.mark.parametrize(
    "failure", [status(503), status(500), status(429, headers={"Retry-After": "0"}), _drop], ids=["503", "500", "429", "drop"]
)
async def test_get_is_tried_again(failure: Any) -> None:
    async with served(failure, failure, {"ok": 1}) as (server, client):
        assert await client.get("/x") == {"ok": 1}
        assert len(server.requests) == 3


async def test_retries_end() -> None:
    async with served(*[status(503, "ServiceUnavailable", "starting")] * 9) as (server, client):
        with pytest.raises(errors.ServerError, match="starting"):
            await client.get("/x")
        assert len(server.requests) == 4


@pytest.mark.parametrize("failure", [status(500), _drop], ids=["500", "drop"])
async def test_post_is_not_sent_twice(failure: Any) -> None:
    async with served(failure, {"ok": 1}) as (server, client):
        with pytest.raises((errors.ServerError, errors.Unreachable)):
            await client.create("/x", {"a": 1})
        assert len(server.requests) == 1


async def test_post_is_sent_again_when_it_was_refused_for_load() -> None:
    async with served(status(429, headers={"Retry-After": "0"}), {"ok": 1}) as (server, client):
        assert await client.create("/x", {"a": 1}) == {"ok": 1}
        assert [request[3] for request in server.requests] == [b'{"a":1}'] * 2


async def test_a_refused_eviction_is_told_at_once() -> None:
    """429 without Retry-After is a PodDisruptionBudget's answer."""
    async with served(status(429, "TooManyRequests", "disruption budget")) as (server, client):
        with pytest.raises(errors.TooManyRequests):
            await client.create("/x", {})
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (400, "BadRequest", errors.BadRequest),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Gone),
        (422, "Invalid", errors.Invalid),
    ],
)
async def test_errors(code: int, reason: str, expected: type[Exception]) -> None:
    async with served(status(code, reason, "the words")) as (_, client):
        with pytest.raises(expected, match="the words") as caught:
            await client.get("/x")
        assert type(caught.value) is expected


@pytest.mark.parametrize("text", ["password=hunter2", '{"message": "password=hunter2"}', '["hunter2"]'])
async def test_body_that_is_no_status_does_not_reach_the_message(text: str) -> None:
    async with served(web.Response(status=403, text=text)) as (_, client):
        with pytest.raises(errors.Forbidden) as caught:
            await client.get("/x")
        assert "hunter2" not in str(caught.value)


async def test_nobody_listens() -> None:
    async with served() as (server, client):
        await server.server.close()
        with pytest.raises(errors.Unreachable) as caught:
            await client.create("/x", {})
        assert not caught.value.sent


async def test_pages_and_an_expired_continue_token() -> None:
    first = {"metadata": {"continue": "t", "resourceVersion": "7"}, "items": [1, 2]}
    async with served(first, {"metadata": {"resourceVersion": "7"}, "items": [3]}) as (server, client):
        whole = await client.list("/x", limit=2)
        assert whole == {"metadata": {"resourceVersion": "7"}, "items": [1, 2, 3]}
        assert server.requests[1][2] == {"limit": "2", "continue": "t"}
    async with served(first, status(410, "Expired"), {"metadata": {"resourceVersion": "9"}, "items": [1, 2, 3, 4]}) as (server, client):
        assert (await client.list("/x", limit=2))["items"] == [1, 2, 3, 4]
        assert server.requests[2][2] == {}


async def _collect(client: kube_client.Client, **how: Any) -> list[tuple[str, str]]:
    found = []
    async for kind, obj in client.watch("/x", resource_version="1", **how):
        found.append((kind, obj["metadata"]["name"]))
    return found


async def test_watch_with_events_cut_anywhere() -> None:
    big = event("ADDED", "big", 3, data="x" * 500_000)
    halves = [
        b'{"pad":"' + b"x" * 100 + b'","type":"ADDED","object":{"metadata":{"na',
        0.01,
        b'me":"a"}}}\n' + b'{"type":"MODIFIED","object":{"metadata":{"name":"b"}}}\n' * 2 + b'{"type":"DELETED",',
        b'"object":{"metadata":{"name":"a"}}}\n',
    ]
    async with served([*halves, big]) as (server, client):
        assert await _collect(client) == [
            ("ADDED", "a"),
            ("MODIFIED", "b"),
            ("MODIFIED", "b"),
            ("DELETED", "a"),
            ("ADDED", "big"),
        ]
        assert server.requests[0][2] == {"watch": "true", "resourceVersion": "1"}


async def test_watch_error_event_is_raised() -> None:
    async with served([event("ADDED", "a", 2), error_event(410, "Expired")]) as (_, client):
        with pytest.raises(errors.Gone):
            await _collect(client)


async def test_watch_that_breaks_or_falls_silent() -> None:
    async with served([event("ADDED", "a", 2), b'{"type":"ADD']) as (_, client):
        with pytest.raises(errors.Unreachable, match="middle of an event"):
            await _collect(client)
    async with served([event("ADDED", "a", 2), 60.0]) as (_, client):
        with pytest.raises(errors.Unreachable):
            await _collect(client, idle=0.1)
