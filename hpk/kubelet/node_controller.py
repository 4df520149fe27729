"""The virtual node in the API: registered once, its status kept true, its Lease renewed.

    _heartbeat   the Lease in kube-node-lease, four times per its duration (KEP-589)
    _statuses    the Node's status: patched when it changed, and every five minutes

Both go on whatever fails: the API server may be away for a while, and so may Slurm.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

from hpk import config as hpk_config
from hpk import errors as hpk_errors
from hpk import paths, procs, records, tasks
from hpk.kube import client as kube_client
from hpk.kube import errors, events, lease
from hpk.kubelet import nodestatus

if TYPE_CHECKING:
    from hpk.slurm import commands

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Seconds after which the status is reported although nothing changed (upstream's nodeStatusReportFrequency).
REPORT_SECONDS = 300.0
#: Seconds between two questions to Slurm about its capacity, which changes seldom.
CAPACITY_SECONDS = 60.0


class CapacitySource(Protocol):
    async def capacity(self) -> commands.Capacity:
        """Raises SlurmError."""


class NodeController:
    """Keeps the Node object ``config.cluster.node_name``. ``address`` and ``port`` are those of the kubelet's own HTTPS API."""

    def __init__(
        self,
        *,
        client: kube_client.Client,
        config: hpk_config.Config,
        paths: paths.Paths,
        recorder: events.Recorder,
        slurm: CapacitySource,
        address: str,
        port: int,
    ) -> None:
        self._client = client
        self._config = config
        self._root = paths.root
        self._recorder = recorder
        self._slurm = slurm
        self._address = address
        self._port = port
        self._name = config.cluster.node_name
        self._path = kube_client.path("v1", "nodes", name=self._name)
        self._runtime: str | None = None
        self._known = nodestatus.Slurm(None)
        self._asked = float("-inf")
        self._reported = float("-inf")
        self._node: Object | None = None
        self._registered = asyncio.Event()

    async def registered(self) -> None:
        """Wait until the Node is in the API with a status of this run."""
        await self._registered.wait()

    async def run(self) -> None:
        """Never returns."""
        running = [tasks.guarded(self._statuses(), "node-status"), tasks.guarded(self._heartbeat(), "node-lease")]
        try:
            await asyncio.gather(*running)
        finally:
            await tasks.stop(running)

    async def _heartbeat(self) -> None:
        await self._registered.wait()
        duration = self._config.kubelet.lease_seconds
        while True:
            pause = duration / 4
            try:
                if self._node is not None:
                    await lease.renew_node_lease(self._client, self._node, duration=duration)
            except hpk_errors.APIError as exc:
                log.warning("the node's Lease could not be renewed: %s", exc.message)
                pause = min(pause, 2.0)
            await asyncio.sleep(pause)

    async def _statuses(self) -> None:
        while True:
            pause = self._config.kubelet.status_update_seconds
            try:
                await self._update()
            except hpk_errors.APIError as exc:
                log.warning("the node's status could not be told: %s", exc.message)
                pause = min(pause, 2.0 if self._registered.is_set() else 0.3)
            await asyncio.sleep(pause)

    async def _update(self) -> None:
        """One round: ask, compare, patch. Raises APIError."""
        loop = asyncio.get_running_loop()
        _, machine = await asyncio.gather(self._ask_slurm(), self._machine())
        node = await self._get_or_register(machine)
        old = node.get("status") or {}
        new = self._status(machine, old)
        if nodestatus.changed(new, old) or loop.time() - self._reported >= REPORT_SECONDS:
            node = await self._client.patch(f"{self._path}/status", nodestatus.patch(new, old, records.now()), kind="strategic")
            self._reported = loop.time()
            self._tell(old, new)
        self._node = node
        self._registered.set()

    def _status(self, machine: nodestatus.Machine, old: Object) -> Object:
        return nodestatus.status(
            self._name,
            self._known,
            machine,
            old=old,
            max_pods=self._config.kubelet.max_pods,
            resources=self._config.slurm.resources,
        )

    async def _get_or_register(self, machine: nodestatus.Machine) -> Object:
        labels = nodestatus.labels(self._name)
        try:
            node = await self._client.get(self._path)
        except errors.NotFound:
            status = self._status(machine, {})
            status["conditions"] = nodestatus.timed(status["conditions"], [], records.now())
            body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._name, "labels": labels}, "status": status}
            try:
                node = await self._client.create(kube_client.path("v1", "nodes"), body)
            except errors.AlreadyExists:
                return await self._client.get(self._path)
            log.info("node %s registered", self._name)
            self._event("Starting", f"Starting kubelet {nodestatus.KUBELET_VERSION}.", node)
            return node
        wrong = {key: value for key, value in labels.items() if (node["metadata"].get("labels") or {}).get(key) != value}
        if wrong:
            node = await self._client.patch(self._path, {"metadata": {"labels": wrong}})
        if self._node is None:
            self._event("Starting", f"Starting kubelet {nodestatus.KUBELET_VERSION}.", node)
        return node

    async def _ask_slurm(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._known.silent_since and loop.time() - self._asked < CAPACITY_SECONDS:
            return
        self._asked = loop.time()
        try:
            self._known = nodestatus.Slurm(await self._slurm.capacity())
        except hpk_errors.HPKError as exc:
            since = self._known.silent_since or records.now()
            log.warning("Slurm does not tell its capacity: %s", exc.message)
            self._known = nodestatus.Slurm(self._known.capacity, since, exc.message)

    async def _machine(self) -> nodestatus.Machine:
        if self._runtime is None:
            self._runtime = await _runtime()
        space = await asyncio.to_thread(_space, self._root)
        return nodestatus.Machine(
            address=self._address,
            kubelet_port=self._port,
            disk_total=space[0],
            disk_free=space[1],
            kernel=os.uname().release,
            os_image=_os_image(),
            machine_id=_first_line("/etc/machine-id"),
            boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
            runtime=self._runtime,
        )

    def _tell(self, old: Object, new: Object) -> None:
        """Events for conditions that changed, as upstream's NodeReady, NodeHasDiskPressure, ..."""
        before = {condition["type"]: condition.get("status") for condition in old.get("conditions") or []}
        for condition in new["conditions"]:
            if before.get(condition["type"]) in (None, condition["status"]):
                continue
            good = condition["status"] == ("True" if condition["type"] in ("Ready", "SlurmReachable") else "False")
            reason = {
                ("Ready", True): "NodeReady",
                ("Ready", False): "NodeNotReady",
                ("DiskPressure", True): "NodeHasNoDiskPressure",
                ("DiskPressure", False): "NodeHasDiskPressure",
            }.get((condition["type"], good), condition["reason"])
            message = f"Node {self._name} status is now: {reason}"
            if condition["type"] == "SlurmReachable":
                message = condition["message"]
            self._event(reason, message, kind="Normal" if good else "Warning")

    def _event(self, reason: str, message: str, node: Object | None = None, *, kind: str = "Normal") -> None:
        node = node or self._node
        uid = node["metadata"]["uid"] if node else self._name
        about = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._name, "uid": uid}}
        self._recorder.event(about, kind, reason, message)


async def _runtime() -> str:
    try:
        done = await procs.arun([procs.container_runtime(), "--version"], timeout=30)
    except hpk_errors.HPKError as exc:
        log.warning("%s", exc.message)
        return nodestatus.runtime_version("")
    return nodestatus.runtime_version(done.stdout)


def _space(path: str) -> tuple[int, int]:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _os_image() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            fields = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    except OSError:
        return "Linux"
    return fields.get("PRETTY_NAME", "Linux").strip('"')
