"""Leases of coordination.k8s.io: one leader at a time, and the heartbeat of a node.

LeaderLease follows client-go's leader election (k8s.io/client-go/tools/leaderelection): a Lease is held until nobody renewed it
for ``leaseDurationSeconds`` as measured by our own clock since we saw the last change; the clocks of others are never believed.
One thing is added: a holder that was a process of this very machine and is dead is succeeded at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hpk import errors as hpk_errors
from hpk.kube import client as kube_client
from hpk.kube import errors

log = logging.getLogger(__name__)

Object = dict[str, Any]
GROUP = "coordination.k8s.io/v1"


class LostLease(hpk_errors.HPKError):
    """Another one leads now, or we could not renew in time and must assume so."""


def micro_time(seconds: float | None = None) -> str:
    """``metav1.MicroTime``: RFC 3339 with six digits."""
    seconds = time.time() if seconds is None else seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def _start_time(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _boot() -> str:
    """Names this kernel's run and pid namespace: a pid means nothing outside of it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return boot[:8] + "-" + os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "unknown"


def identity() -> str:
    """A name for this process that lets another one on the same machine see whether it is still there."""
    return f"{socket.gethostname()}_{_boot()}_{os.getpid()}_{_start_time(os.getpid())}"


def is_dead(holder: str) -> bool:
    """True when ``holder`` is an identity() of this machine and its process has ended. Otherwise nothing is known: False."""
    parts = holder.rsplit("_", 3)
    if len(parts) != 4 or parts[0] != socket.gethostname() or parts[1] != _boot() or parts[1] == "unknown" or not parts[2].isdigit():
        return False
    return _start_time(int(parts[2])) != parts[3]


class LeaderLease:
    """Leadership by the Lease ``namespace/name``. Times in seconds: how long a lease lasts, when a leader gives up, how often it renews."""

    def __init__(
        self,
        client: kube_client.Client,
        namespace: str,
        name: str,
        *,
        holder: str | None = None,
        duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry: float = 2.0,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self.holder = holder or identity()
        self._duration = duration
        self._deadline = renew_deadline
        self._retry = retry
        self._path = kube_client.path(GROUP, "leases", namespace, name)
        self._observed: Object | None = None
        self._observed_at = 0.0
        self._observed_spec: Object = {}
        self._told: str | None = None

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait for the leadership, then run ``lead()`` until it ends or the leadership is lost (LostLease). Releases it at the end."""
        await self._acquire()
        log.info("leading as %s", self.holder)
        work = asyncio.ensure_future(lead())
        renewal = asyncio.ensure_future(self._renew_for_ever())
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, renewal):
                task.cancel()
            await asyncio.gather(work, renewal, return_exceptions=True)
            await self._release()
        if not renewal.cancelled() and (failure := renewal.exception()):
            raise failure
        if not work.cancelled() and (failure := work.exception()):
            raise failure

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._try():
                    return
            except hpk_errors.APIError as exc:
                log.info("lease %s: %s", self._name, exc.message)
            await asyncio.sleep(self._retry * (1 + random.random() / 2))  # noqa: S311 - spreading, not a secret

    async def _renew_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self._retry)
            left = renewed + self._deadline - loop.time()
            try:
                if not await asyncio.wait_for(self._try(), max(left, 0.1)):
                    raise LostLease(f"lease {self._name}: now held by {self._observed_spec.get('holderIdentity')}")
                renewed = loop.time()
            except (asyncio.TimeoutError, TimeoutError, hpk_errors.APIError) as exc:
                if loop.time() >= renewed + self._deadline:
                    raise LostLease(f"lease {self._name}: not renewed for {self._deadline:.0f} s: {exc}") from exc

    def _observe(self, lease: Object) -> None:
        spec = lease.get("spec") or {}
        if self._observed is None or spec != self._observed_spec:
            self._observed_at = asyncio.get_running_loop().time()
            self._observed_spec = spec
        self._observed = lease

    async def _try(self) -> bool:
        """Take or renew the Lease; False while another one holds it."""
        now = micro_time()
        spec: Object = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": int(self._duration) or 1,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        try:
            lease = await self._client.get(self._path)
        except errors.NotFound:
            body = {"apiVersion": GROUP, "kind": "Lease", "metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}
            try:
                self._observe(await self._client.create(kube_client.path(GROUP, "leases", self._namespace), body))
            except errors.AlreadyExists:
                return False
            return True
        self._observe(lease)
        old = lease.get("spec") or {}
        holder = old.get("holderIdentity") or ""
        if holder and holder != self.holder:
            valid_until = self._observed_at + float(old.get("leaseDurationSeconds") or self._duration)
            if asyncio.get_running_loop().time() < valid_until and not is_dead(holder):
                if self._told != holder:
                    log.info("lease %s is held by %s; waiting", self._name, holder)
                    self._told = holder
                return False
        spec["leaseTransitions"] = int(old.get("leaseTransitions") or 0)
        if holder == self.holder:
            spec["acquireTime"] = old.get("acquireTime") or now
        else:
            spec["leaseTransitions"] += 1
        try:
            self._observe(await self._client.replace(self._path, {**lease, "spec": spec}))
        except (errors.Conflict, errors.NotFound):
            return False if holder != self.holder else await self._still_ours()
        return True

    async def _still_ours(self) -> bool:
        """After a conflict on our own Lease: our former write may have arrived although its answer was lost."""
        lease = await self._client.get(self._path)
        self._observe(lease)
        return bool((lease.get("spec") or {}).get("holderIdentity") == self.holder)

    async def _release(self) -> None:
        """Let the next one in without a wait (client-go's ReleaseOnCancel)."""
        try:
            lease = await asyncio.wait_for(self._client.get(self._path), 3)
            if (lease.get("spec") or {}).get("holderIdentity") != self.holder:
                return
            now = micro_time()
            spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
            await asyncio.wait_for(self._client.replace(self._path, {**lease, "spec": spec}), 3)
        except (hpk_errors.APIError, asyncio.TimeoutError, TimeoutError) as exc:
            log.info("lease %s not released: %s", self._name, exc)


NODE_NAMESPACE = "kube-node-lease"


async def renew_node_lease(client: kube_client.Client, node: Object, *, duration: int) -> None:
    """Renew (or make) the Lease that says the node is alive (KEP-589). Raises APIError.

    ``node`` owns the Lease, so it goes with it; ``duration`` in seconds.
    """
    name = node["metadata"]["name"]
    path = kube_client.path(GROUP, "leases", NODE_NAMESPACE, name)
    spec = {"holderIdentity": name, "leaseDurationSeconds": duration, "renewTime": micro_time()}
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    body: Object = {"metadata": {"ownerReferences": [owner]}, "spec": spec}
    try:
        await client.patch(path, body)
    except errors.NotFound:
        body = {"apiVersion": GROUP, "kind": "Lease", "metadata": {**body["metadata"], "name": name}, "spec": spec}
        body["metadata"]["namespace"] = NODE_NAMESPACE
        try:
            await client.create(kube_client.path(GROUP, "leases", NODE_NAMESPACE), body)
        except errors.AlreadyExists:
            await client.patch(path, {"spec": spec})
