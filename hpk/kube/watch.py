"""Reflector: keeps a Store equal to what the API server has, for ever.

run()     list and watch again and again; back-off while the server is away or refuses
_list()   the whole list in pages into the store
_watch()  one watch: events into the store until it ends

The watch is resumed from the last resourceVersion seen, also by bookmarks. A list is made again when that version is too old
(410), and after the server was away: it may have come back with an older database. A connection on which nothing came, not
even a bookmark (one a minute), is dead although TCP does not say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from hpk import errors as hpk_errors
from hpk.kube import client as kube_client
from hpk.kube import errors
from hpk.kube.store import Store

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: The server ends a watch after this many seconds (to twice as many): spreads the load, and a stale watch cannot last.
WATCH_SECONDS = 300
#: Seconds of silence after which a watch is dead; bookmarks come about every 60.
IDLE_SECONDS = 130.0
#: Longest pause between two attempts, in seconds. Short: the user waits for the cluster to come back.
MAX_BACKOFF = 5.0


def without_managed_fields(obj: Object) -> Object:
    """A ``trim`` for everybody: managedFields are often half of an object, and nobody here reads them."""
    obj["metadata"].pop("managedFields", None)
    return obj


class Reflector:
    """Fills ``store`` with the objects of ``path`` that ``query`` selects; ``trim`` makes each one smaller before it is kept."""

    def __init__(
        self,
        client: kube_client.Client,
        path: str,
        store: Store,
        *,
        query: Mapping[str, Any] | None = None,
        trim: Callable[[Object], Object] = without_managed_fields,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._client = client
        self._path = path
        self._store = store
        self._query = dict(query or {})
        self._trim = trim
        self._idle = idle
        self._version: str | None = None  # None: list first

    async def run(self) -> None:
        """Never returns; ends by cancellation."""
        delay = 0.1
        while True:
            started = asyncio.get_running_loop().time()
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
            except errors.Gone as exc:
                log.info("%s: listing again: %s", self._path, exc.message)
                self._version = None
            except errors.Unreachable as exc:
                log.info("%s: %s", self._path, exc.message)
                if not exc.sent:
                    self._version = None
            except hpk_errors.APIError as exc:
                log.warning("%s: %s", self._path, exc.message)
                self._version = None
            except Exception:
                log.exception("%s: watch failed, listing again", self._path)  # one strange object must not stop all
                self._version = None
            lasted = asyncio.get_running_loop().time() - started
            delay = 0.1 if lasted > MAX_BACKOFF else min(delay * 2, MAX_BACKOFF)
            await asyncio.sleep(delay * (0.5 + random.random() / 2))  # noqa: S311 - spreading, not a secret

    async def _list(self) -> None:
        items: list[Object] = []
        version = None
        try:
            async for page in self._client.pages(self._path, **self._query):
                version = version or page["metadata"]["resourceVersion"]
                items += [self._trim(obj) for obj in page.get("items") or []]
        except errors.Gone:
            page = await self._client.list(self._path, limit=0, **self._query)
            version = page["metadata"]["resourceVersion"]
            items = [self._trim(obj) for obj in page["items"]]
        self._store.replace(items)
        self._version = version
        log.debug("%s: listed %d at %s", self._path, len(items), version)

    async def _watch(self) -> None:
        assert self._version is not None
        events = self._client.watch(
            self._path,
            resource_version=self._version,
            idle=self._idle,
            allowWatchBookmarks=True,
            timeoutSeconds=WATCH_SECONDS + random.randrange(WATCH_SECONDS),  # noqa: S311 - spreading, not a secret
            **self._query,
        )
        async with contextlib.aclosing(events):
            async for kind, obj in events:
                version = obj["metadata"]["resourceVersion"]
                if kind in ("ADDED", "MODIFIED"):
                    self._store.put(self._trim(obj))
                elif kind == "DELETED":
                    self._store.delete(self._trim(obj))
                elif kind != "BOOKMARK":
                    raise errors.Unreachable(f"{self._path}: unknown event type {kind!r}", sent=False)
                self._version = version
