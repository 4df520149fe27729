"""Recorder of Kubernetes Events: what ``kubectl describe`` shows below an object.

Repeats are counted in one Event, like what upstream's correlator does (k8s.io/client-go/tools/record/events_cache.go): the same
message again raises ``count``; more than ten different messages of one reason in ten minutes are combined; an object that has
spoken 25 times gets one more Event each five minutes. Events are a comfort: recording never raises, never waits, and what the
server does not take is dropped.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import time
from typing import Any

from hpk import errors as hpk_errors
from hpk import records
from hpk.kube import client as kube_client
from hpk.kube import errors

log = logging.getLogger(__name__)

Object = dict[str, Any]

MAX_QUEUE = 5000
MAX_MESSAGE = 1024  # the API server's limit for notes; upstream cuts there too
MAX_CACHE = 4096
SIMILAR_MAX = 10
SIMILAR_SECONDS = 600.0
SPAM_BURST = 25
SPAM_REFILL = 1 / 300.0
#: Tries for one Event while the server is away; each has the client's own retries inside.
TRIES = 5


def reference(obj: Object, field_path: str = "") -> Object:
    """The ObjectReference of ``obj``. Items of a list have no kind: a Pod, then."""
    metadata = obj["metadata"]
    found = {
        "apiVersion": obj.get("apiVersion", "v1"),
        "kind": obj.get("kind", "Pod"),
        "namespace": metadata.get("namespace"),
        "name": metadata["name"],
        "uid": metadata.get("uid"),
        "resourceVersion": metadata.get("resourceVersion"),
        "fieldPath": field_path,
    }
    return {name: value for name, value in found.items() if value}


@dataclasses.dataclass
class _Seen:
    """An Event that exists and may be counted up."""

    name: str
    count: int
    first: str


@dataclasses.dataclass(frozen=True)
class _Wish:
    about: Object
    type: str
    reason: str
    message: str
    time: float


class Recorder:
    """Records Events as ``component`` on ``host``. ``start()`` is implied by the first Event; ``stop()`` writes what is left."""

    def __init__(self, client: kube_client.Client, component: str, host: str) -> None:
        self._client = client
        self._component = component
        self._host = host
        self._queue: collections.deque[_Wish] = collections.deque()
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._dropped = 0
        self._seen: collections.OrderedDict[tuple[str, ...], _Seen] = collections.OrderedDict()
        self._similar: collections.OrderedDict[tuple[str, ...], tuple[float, set[int]]] = collections.OrderedDict()
        self._spam: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def event(self, obj: Object, type: str, reason: str, message: str, *, field_path: str = "") -> None:
        """Record an Event about ``obj``: ``type`` "Normal" or "Warning"; ``field_path`` like ``spec.containers{main}``."""
        try:
            about = reference(obj, field_path)
        except (KeyError, TypeError, AttributeError):
            log.warning("event %s about an object without a name", reason)
            return
        if len(self._queue) >= MAX_QUEUE:
            self._dropped += 1
            return
        self._queue.append(_Wish(about, type, reason, message, time.time()))
        self._idle.clear()
        self._more.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="events")

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until all is written, at most ``timeout`` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            log.info("%d Events could not be written", len(self._queue))

    async def stop(self, timeout: float = 5.0) -> None:
        await self.flush(timeout)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._more.wait()
            while self._queue:
                try:
                    await self._record(self._queue.popleft())
                except Exception:
                    log.exception("an Event could not be recorded")
            if self._dropped:
                log.warning("%d Events were dropped: more than %d were waiting", self._dropped, MAX_QUEUE)
                self._dropped = 0
            self._more.clear()
            self._idle.set()

    async def _record(self, wish: _Wish) -> None:
        if self._is_spam(wish):
            return
        message, key = self._combined(wish)
        message = message[:MAX_MESSAGE]
        namespace = wish.about.get("namespace") or "default"
        now = records.now(wish.time)
        path = kube_client.path("v1", "events", namespace)
        for attempt in range(TRIES):
            try:
                seen = self._seen.get(key)
                if seen is not None:
                    try:
                        await self._client.patch(f"{path}/{seen.name}", {"count": seen.count + 1, "lastTimestamp": now, "message": message})
                        seen.count += 1
                        self._seen.move_to_end(key)
                        return
                    except errors.NotFound:  # its hour is over
                        del self._seen[key]
                await self._create(path, namespace, wish, message, now, key)
                return
            except (errors.Unreachable, errors.ServerError, errors.TooManyRequests):
                await asyncio.sleep(min(2.0**attempt, 10.0))
            except hpk_errors.APIError as exc:  # the namespace is going, or we may not: nothing to gain by asking again
                log.debug("event %s refused: %s", wish.reason, exc.message)
                return
        log.info("event %s about %s dropped: the API server is away", wish.reason, wish.about["name"])

    async def _create(self, path: str, namespace: str, wish: _Wish, message: str, now: str, key: tuple[str, ...]) -> None:
        name = f"{wish.about['name'][:230]}.{time.time_ns():x}"
        await self._client.create(
            path,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": wish.about,
                "type": wish.type,
                "reason": wish.reason,
                "message": message,
                "source": {"component": self._component, "host": self._host},
                "reportingComponent": self._component,
                "reportingInstance": self._host,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            },
        )
        self._seen[key] = _Seen(name, 1, now)
        while len(self._seen) > MAX_CACHE:
            self._seen.popitem(last=False)

    def _is_spam(self, wish: _Wish) -> bool:
        """Token bucket per object, as upstream's EventSourceObjectSpamFilter."""
        about = wish.about.get("uid") or wish.about["name"]
        tokens, last = self._spam.pop(about, (float(SPAM_BURST), wish.time))
        tokens = min(SPAM_BURST, tokens + max(0.0, wish.time - last) * SPAM_REFILL)
        spam = tokens < 1
        self._spam[about] = (tokens if spam else tokens - 1, wish.time)
        while len(self._spam) > MAX_CACHE:
            self._spam.popitem(last=False)
        return spam

    def _combined(self, wish: _Wish) -> tuple[str, tuple[str, ...]]:
        """The message to write and the key by which a repeat is known, as upstream's EventAggregator."""
        about = wish.about
        kind = (about.get("uid", ""), about["name"], about.get("fieldPath", ""), wish.type, wish.reason)
        since, messages = self._similar.pop(kind, (wish.time, set()))
        if wish.time - since > SIMILAR_SECONDS:
            since, messages = wish.time, set()
        if len(messages) <= SIMILAR_MAX:
            messages.add(hash(wish.message))
        self._similar[kind] = (since, messages)
        while len(self._similar) > MAX_CACHE:
            self._similar.popitem(last=False)
        if len(messages) > SIMILAR_MAX:
            return f"(combined from similar events): {wish.message}", kind
        return wish.message, (*kind, wish.message)
