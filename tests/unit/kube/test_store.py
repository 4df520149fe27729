"""Store: what its subscribers are told."""

from __future__ import annotations

import asyncio
from typing import Any

from hpk.kube.store import Store

Object = dict[str, Any]


def obj(name: str, version: int = 1, uid: str = "") -> Object:
    return {"metadata": {"namespace": "n", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}}


def watched() -> tuple[Store, list[tuple[Any, ...]]]:
    store, told = Store(), []

    def handler(old: Object | None, new: Object | None) -> None:
        told.append(tuple(x and (x["metadata"]["uid"], x["metadata"]["resourceVersion"]) for x in (old, new)))

    store.subscribe(handler)
    return store, told


def test_add_change_delete() -> None:
    store, told = watched()
    store.put(obj("a"))
    store.put(obj("a", 2))
    store.put(obj("a", 2))  # the same again, as after a reconnect
    store.delete(obj("a", 3))
    assert told == [(None, ("uid-a", "1")), (("uid-a", "1"), ("uid-a", "2")), (("uid-a", "3"), None)]
    assert len(store) == 0
    assert store.by_uid("uid-a") is None


def test_relist_tells_missed_deletions() -> None:
    store, told = watched()
    store.replace([obj("a"), obj("b")])
    del told[:]
    store.replace([obj("b"), obj("c")])
    assert told == [(None, ("uid-c", "1")), (("uid-a", "1"), None)]


def test_same_name_other_object() -> None:
    """Deleted and made again while nobody looked: two changes, not one."""
    store, told = watched()
    store.put(obj("a", uid="old"))
    store.put(obj("a", 5, uid="new"))
    assert told[1:] == [(("old", "1"), None), (None, ("new", "5"))]
    assert store.by_uid("old") is None
    store.delete(obj("a", uid="old"))  # a late word about the former one
    assert store.get("n", "a") is not None


def test_late_subscriber_sees_what_is_there() -> None:
    store = Store()
    store.put(obj("a"))
    seen = []
    store.subscribe(lambda old, new: seen.append((old, new)))
    assert seen == [(None, obj("a"))]


def test_a_handler_that_fails_does_not_hurt_the_others() -> None:
    store, seen = Store(), []

    def broken(old: Object | None, new: Object | None) -> None:
        raise KeyError("x")

    store.subscribe(broken)
    store.subscribe(lambda old, new: seen.append(new))
    store.put(obj("a"))
    assert seen == [obj("a")]


async def test_synced() -> None:
    store = Store()
    waiter = asyncio.create_task(store.synced())
    await asyncio.sleep(0)
    assert not waiter.done()
    store.replace([])
    await asyncio.wait_for(waiter, 1)
