"""Reflector: list, watch, resume, relist."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hpk.kube import watch
from hpk.kube.store import Store
from tests.unit.kube.fake import FakeServer, error_event, event, served, status


def listed(version: int, *names: str) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "items": [event("", name, version)["object"] for name in names]}


@contextlib.asynccontextmanager
async def reflected(*answers: Any, **how: Any) -> AsyncIterator[tuple[FakeServer, Store]]:
    async with served(*answers) as (server, client):
        store = Store()
        task = asyncio.create_task(watch.Reflector(client, "/x", store, query={"fieldSelector": "f"}, **how).run())
        yield server, store
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def requests(server: FakeServer, count: int) -> list[dict[str, str]]:
    for _ in range(500):
        if len(server.requests) >= count:
            break
        await asyncio.sleep(0.01)
    assert len(server.requests) >= count
    return [query for _, _, query, _ in server.requests]


def names(store: Store) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in store.list())


async def test_follows_and_resumes_from_a_bookmark() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "50"}}}
    first = [event("ADDED", "b", 11), event("DELETED", "a", 12), bookmark]
    async with reflected(listed(10, "a"), first) as (server, store):
        queries = await requests(server, 3)
        assert names(store) == ["b"]
        assert [query.get("resourceVersion") for query in queries] == [None, "10", "50"]
        assert all(query["fieldSelector"] == "f" for query in queries)
        assert queries[1]["allowWatchBookmarks"] == "true"


async def test_lists_again_when_the_version_is_gone() -> None:
    async with reflected(listed(10, "a", "b"), [error_event(410, "Expired")], listed(20, "b", "c")) as (server, store):
        queries = await requests(server, 4)
        assert names(store) == ["b", "c"]
        assert queries[3]["resourceVersion"] == "20"


async def test_a_broken_watch_is_resumed_without_a_list() -> None:
    async with reflected(listed(10), [event("ADDED", "a", 11), b'{"ty']) as (server, _):
        queries = await requests(server, 3)
        assert queries[2]["watch"] == "true"
        assert queries[2]["resourceVersion"] == "11"


async def test_silence_ends_a_watch() -> None:
    async with reflected(listed(10), [30.0], idle=0.05) as (server, _):
        queries = await requests(server, 3)
        assert queries[2]["resourceVersion"] == "10"


async def test_goes_on_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [status(403, "Forbidden"), status(401, "Unauthorized"), {"no": "list"}, listed(10, "a"), [{"type": "WAT", "object": {}}]]
    async with reflected(*answers, listed(11, "b")) as (server, store):
        await requests(server, 7)
        assert names(store) == ["b"]


async def test_pages_and_trim() -> None:
    first = listed(10, "a")
    first["metadata"]["continue"] = "token"
    first["items"][0]["metadata"]["managedFields"] = [{"big": 1}]
    async with reflected(first, listed(10, "b")) as (server, store):
        await requests(server, 3)
        assert names(store) == ["a", "b"]
        assert "managedFields" not in store.list()[0]["metadata"]


async def test_a_page_that_expired_gives_the_whole_list() -> None:
    first = listed(10, "a")
    first["metadata"]["continue"] = "token"
    async with reflected(first, status(410, "Expired"), listed(12, "b", "c")) as (server, store):
        queries = await requests(server, 4)
        assert names(store) == ["b", "c"]
        assert "limit" not in queries[2]
        assert queries[3]["resourceVersion"] == "12"
