"""Objects as last seen, by namespace and name, with subscribers who are told of each change.

A Reflector (hpk/kube/watch.py) fills it. After a relist the store itself finds out what changed, so a deletion that happened
while the watch was broken is told like any other. An object that was deleted and made again under its name is told as a
deletion and an addition: the two have nothing in common but the name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

log = logging.getLogger(__name__)

Object = dict[str, Any]
#: Called with (old, new): (None, new) added, (old, new) changed, (old, None) deleted.
Handler = Callable[[Object | None, Object | None], None]


def key(obj: Object) -> str:
    """``namespace/name``; ``/name`` for an object without namespace."""
    metadata = obj["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


class Store:
    """One kind of objects. The dicts are shared: nobody changes them."""

    def __init__(self) -> None:
        self._items: dict[str, Object] = {}
        self._keys: dict[str, str] = {}  # UID to key
        self._handlers: list[Handler] = []
        self._synced = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, namespace: str, name: str) -> Object | None:
        return self._items.get(f"{namespace}/{name}")

    def by_key(self, key: str) -> Object | None:
        return self._items.get(key)

    def by_uid(self, uid: str) -> Object | None:
        found = self._keys.get(uid)
        return None if found is None else self._items.get(found)

    def list(self) -> list[Object]:
        return list(self._items.values())

    def subscribe(self, handler: Handler) -> None:
        """Call ``handler`` for every change from now on, and at once for each object that is here. It must not block or raise."""
        self._handlers.append(handler)
        for obj in self.list():
            self._tell(handler, None, obj)

    async def synced(self) -> None:
        """Wait until the store has been filled once."""
        await self._synced.wait()

    @property
    def is_synced(self) -> bool:
        return self._synced.is_set()

    def replace(self, items: Iterable[Object]) -> None:
        """Make the content that of a fresh list."""
        seen = set()
        for obj in items:
            self.put(obj)
            seen.add(key(obj))
        for gone in [known for known in self._items if known not in seen]:
            self._remove(gone, None)
        self._synced.set()

    def put(self, obj: Object) -> None:
        """An object was added or changed."""
        name = key(obj)
        old = self._items.get(name)
        if old is not None and old["metadata"].get("uid") != obj["metadata"].get("uid"):
            self._remove(name, None)
            old = None
        self._items[name] = obj
        if uid := obj["metadata"].get("uid"):
            self._keys[uid] = name
        if old is None or old["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
            self._notify(old, obj)

    def delete(self, obj: Object) -> None:
        """An object was deleted; ``obj`` is its last state."""
        name = key(obj)
        old = self._items.get(name)
        if old is not None and old["metadata"].get("uid") == obj["metadata"].get("uid"):
            self._remove(name, obj)

    def _remove(self, name: str, last: Object | None) -> None:
        old = self._items.pop(name)
        self._keys.pop(old["metadata"].get("uid", ""), None)
        self._notify(last or old, None)

    def _notify(self, old: Object | None, new: Object | None) -> None:
        for handler in self._handlers:
            self._tell(handler, old, new)

    def _tell(self, handler: Handler, old: Object | None, new: Object | None) -> None:
        try:
            handler(old, new)
        except Exception:
            log.exception("a handler failed for %s", key(new or old or {"metadata": {"name": "?"}}))
