"""The objects that Pods refer to, read one by one: that is all the Node authorizer gives a kubelet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors

#: The API server lets a node read what its Pods refer to, but learns of a new Pod a moment after us: seconds between tries.
_FORBIDDEN_PAUSES = (0.05, 0.2, 0.5)


async def tries() -> AsyncIterator[bool]:
    """Yield for each try of a request that may be Forbidden for a moment; True for the last one."""
    for pause in _FORBIDDEN_PAUSES:
        yield False
        await asyncio.sleep(pause)
    yield True


class Objects:
    """Reads objects of the core group. With ``remember`` each is asked for once, for a short-lived sweep over many Pods."""

    def __init__(self, client: kube_client.Client, *, remember: bool = False) -> None:
        self._client = client
        self._known: dict[tuple[str, str, str], dict[str, Any] | None] | None = {} if remember else None

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object, None when there is none. Raises errors of hpk.kube.errors."""
        key = (kind, namespace, name)
        if self._known is not None and key in self._known:
            return self._known[key]
        found = await self._ask(kind, namespace, name)
        if self._known is not None:
            self._known[key] = found
        return found

    async def get_all(self, kind: str, namespace: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return those of ``names`` that are there."""
        wanted = sorted({name for name in names if name})
        found = await asyncio.gather(*(self.get(kind, namespace, name) for name in wanted))
        return {name: obj for name, obj in zip(wanted, found, strict=True) if obj is not None}

    async def _ask(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        async for last in tries():
            try:
                return await self._client.get(kube_client.path("v1", kind, namespace or None, name))
            except kube_errors.NotFound:
                return None
            except kube_errors.Forbidden:
                if last:
                    raise
        raise AssertionError("the last try returns or raises")
