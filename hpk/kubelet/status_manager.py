"""Sends Pod statuses to the API server: only what differs, the newest one wins, again until it is there.

A strategic merge patch of ``/status`` (as upstream's status manager sends) leaves conditions of others alone, needs no
resourceVersion, and names the UID: a Pod made anew under the same name cannot get its predecessor's status.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Any

from hpk import errors as hpk_errors
from hpk import tasks
from hpk.kube import client as kube_client
from hpk.kube import errors
from hpk.kubelet import faults, status

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Requests at the same time.
SENDERS = 16
#: Seconds that a change within a phase waits for the next one: a starting Pod has several in one moment.
SETTLE_SECONDS = 0.3
MAX_BACKOFF = 30.0


class _Entry:
    """One Pod: what is wanted, and what the API server surely has."""

    __slots__ = ("acked", "busy", "delay", "pod", "urgent", "version", "waiters", "wanted")

    def __init__(self, pod: Object) -> None:
        self.pod = pod
        self.wanted: Object | None = None
        self.acked: Object | None = None
        self.version = 0  # resourceVersion of the answer to our last patch
        self.busy = False
        self.urgent = False  # it is in the queue; else a timer will put it there
        self.delay = 0.5
        self.waiters: list[asyncio.Future[None]] = []


class StatusManager:
    """One for all Pods. ``set`` never blocks; ``sent`` waits until what was set last is in the API, or the Pod is gone."""

    def __init__(self, client: kube_client.Client) -> None:
        self._client = client
        self._entries: dict[str, _Entry] = {}
        self._queue: collections.deque[str] = collections.deque()
        self._more = asyncio.Semaphore(0)

    def set(self, pod: Object, wanted: Object) -> None:
        """The status of ``pod`` (the latest that is known of it) is to become ``wanted``."""
        uid = pod["metadata"]["uid"]
        entry = self._entries.get(uid)
        if entry is None:
            entry = self._entries[uid] = _Entry(pod)
        entry.pod = pod
        if not entry.busy and status.patch(wanted, entry.acked or pod.get("status") or {}) is None:
            return
        known = entry.wanted or entry.acked
        entry.wanted = wanted
        if entry.busy and entry.urgent:
            return
        if known is not None and known["phase"] == wanted["phase"]:
            if not entry.busy:
                entry.busy = True
                asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settled, uid, entry)
        else:
            self._hurry(uid, entry)

    def _settled(self, uid: str, entry: _Entry) -> None:
        if self._entries.get(uid) is entry and not entry.urgent:
            self._hurry(uid, entry)

    def _hurry(self, uid: str, entry: _Entry) -> None:
        entry.busy = entry.urgent = True
        self._queue.append(uid)
        self._more.release()

    def observe(self, pod: Object) -> None:
        """The watch told of ``pod``: when somebody else changed what is ours, put it right (upstream: needsReconcile)."""
        entry = self._entries.get(pod["metadata"]["uid"])
        if entry is None:
            return
        entry.pod = pod
        version = pod["metadata"].get("resourceVersion", "")
        if entry.acked is None or entry.busy or not version.isdigit() or int(version) <= entry.version:
            return
        if status.patch(entry.acked, pod.get("status") or {}) is not None:
            entry.wanted, entry.acked = entry.acked, None
            self._push(pod["metadata"]["uid"], entry)

    def forget(self, uid: str) -> None:
        entry = self._entries.pop(uid, None)
        if entry is not None:
            self._release(entry)

    async def sent(self, uid: str) -> None:
        entry = self._entries.get(uid)
        if entry is None or (entry.wanted is None and not entry.busy):
            return
        waiter = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        await waiter

    async def run(self) -> None:
        """Never returns."""
        senders = [tasks.guarded(self._send(), f"status {number}") for number in range(SENDERS)]
        try:
            await asyncio.gather(*senders)
        finally:
            await tasks.stop(senders)

    def _push(self, uid: str, entry: _Entry) -> None:
        if not entry.busy:
            self._hurry(uid, entry)  # waiting counts as busy: it is in the queue once

    def _release(self, entry: _Entry) -> None:
        for waiter in entry.waiters:
            if not waiter.done():
                waiter.set_result(None)
        entry.waiters.clear()

    async def _send(self) -> None:
        while True:
            await self._more.acquire()
            uid = self._queue.popleft()
            entry = self._entries.get(uid)
            if entry is None:
                continue
            wanted, entry.wanted = entry.wanted, None
            if wanted is not None:
                try:
                    await self._patch(uid, entry, wanted)
                    entry.delay = 0.5
                except (errors.NotFound, errors.Conflict):  # gone, or another one of that name: nobody to tell
                    log.debug("status of %s: the Pod is gone", uid)
                except errors.Invalid as exc:  # our defect: trying again would not help, and must not hold up a deletion
                    log.error("status of Pod %s is not accepted: %s", entry.pod["metadata"]["name"], exc.message)
                except hpk_errors.APIError as exc:
                    log.warning("status of Pod %s: %s; trying again", entry.pod["metadata"]["name"], exc.message)
                    entry.wanted = entry.wanted or wanted
                    asyncio.get_running_loop().call_later(entry.delay, self._again, uid, entry)
                    entry.delay = min(entry.delay * 2, MAX_BACKOFF)
                    continue
            self._done(uid, entry)

    def _done(self, uid: str, entry: _Entry) -> None:
        entry.busy = entry.urgent = False
        if entry.wanted is not None:  # something newer came meanwhile
            self._push(uid, entry)
        else:
            self._release(entry)

    def _again(self, uid: str, entry: _Entry) -> None:
        if self._entries.get(uid) is entry:
            self._hurry(uid, entry)

    async def _patch(self, uid: str, entry: _Entry, wanted: Object) -> None:
        current = entry.acked or entry.pod.get("status") or {}
        if current.get("phase") in status.TERMINAL and wanted["phase"] != current["phase"]:
            log.warning("Pod %s has ended as %s: not changed to %s", entry.pod["metadata"]["name"], current["phase"], wanted["phase"])
            return
        changes = status.patch(wanted, current)
        if changes is None:
            entry.acked = wanted
            return
        final = wanted["phase"] in status.TERMINAL
        if final:
            faults.point("before-final-status")
        metadata = entry.pod["metadata"]
        answer = await self._client.patch(
            kube_client.pods_path(metadata["namespace"], metadata["name"], "status"),
            {"metadata": {"uid": uid}, "status": changes},
            kind="strategic",
        )
        if final:
            faults.point("after-final-status")
        entry.acked = wanted
        version = answer.get("metadata", {}).get("resourceVersion", "")
        entry.version = int(version) if version.isdigit() else 0
