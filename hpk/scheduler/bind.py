"""The pass-through scheduler: each pending Pod goes to the first node that it may run on, at once.

Pods come from a watch of those without a node; a queue hands them to a few workers that bind at the same time. A Pod that fits
nowhere gets the condition and the Event that kube-scheduler would give it, and is tried again when a node or a claim changes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from hpk import errors as hpk_errors
from hpk import records, tasks
from hpk.kube import client as kube_client
from hpk.kube import errors, events, watch, workqueue
from hpk.kube.store import Store, key
from hpk.scheduler import claims, filters

log = logging.getLogger(__name__)

Object = dict[str, Any]

SCHEDULER_NAME = "default-scheduler"
PENDING = f"spec.nodeName=,spec.schedulerName={SCHEDULER_NAME},status.phase!=Succeeded,status.phase!=Failed"
#: Bindings under way at the same time: more only makes the API server's queue longer.
WORKERS = 8
#: Pods that fit nowhere are tried again after so many seconds even if nothing changed (kube-scheduler: 5 minutes).
RETRY_SECONDS = 300.0


def trim_pod(pod: Object) -> Object:
    """What scheduling needs of a Pod: thousands may be waiting behind their gates."""
    metadata, spec = pod["metadata"], pod["spec"]
    kept = {field: spec[field] for field in ("nodeName", "nodeSelector", "tolerations", "schedulingGates") if field in spec}
    if node_affinity := (spec.get("affinity") or {}).get("nodeAffinity"):
        kept["affinity"] = {"nodeAffinity": node_affinity}
    if volumes := [v for v in spec.get("volumes") or [] if "persistentVolumeClaim" in v or "ephemeral" in v]:
        kept["volumes"] = volumes
    conditions = [c for c in (pod.get("status") or {}).get("conditions") or [] if c["type"] == "PodScheduled"]
    fields = ("name", "namespace", "uid", "resourceVersion", "generation", "deletionTimestamp")
    return {
        "metadata": {field: metadata[field] for field in fields if field in metadata},
        "spec": kept,
        "status": {"conditions": conditions},
    }


def trim_node(node: Object) -> Object:
    metadata, spec = node["metadata"], node.get("spec") or {}
    return {
        "metadata": {field: metadata[field] for field in ("name", "uid", "resourceVersion", "labels") if field in metadata},
        "spec": {field: spec[field] for field in ("taints", "unschedulable") if field in spec},
    }


class Scheduler:
    """Binds Pods. ``watch()`` fills its stores and may run in a stand-by; ``bind()`` acts and must run in the leader only."""

    def __init__(self, client: kube_client.Client, recorder: events.Recorder) -> None:
        self._client = client
        self._recorder = recorder
        self._pods, self._nodes = Store(), Store()
        self._storage = claims.Stores(Store(), Store(), Store())
        self._queue: workqueue.WorkQueue[str] = workqueue.WorkQueue(base=0.2, maximum=30.0)
        self._unschedulable: set[str] = set()
        self._bound: set[str] = set()  # UIDs of Pods that we bound and that the watch still shows as pending
        self._pods.subscribe(self._pod_changed)
        self._nodes.subscribe(self._node_changed)
        for store in (self._storage.claims, self._storage.volumes, self._storage.classes):
            store.subscribe(self._storage_changed)

    async def watch(self) -> None:
        """Follow Pods, nodes and what volumes are made of. Never returns."""
        storage = self._storage
        reflectors = [
            watch.Reflector(self._client, path, store, trim=trim)
            for path, store, trim in (
                (kube_client.path("v1", "nodes"), self._nodes, trim_node),
                (kube_client.path("v1", "persistentvolumeclaims"), storage.claims, claims.trim_claim),
                (kube_client.path("v1", "persistentvolumes"), storage.volumes, claims.trim_volume),
                (kube_client.path("storage.k8s.io/v1", "storageclasses"), storage.classes, claims.trim_class),
            )
        ]
        reflectors.append(
            watch.Reflector(self._client, kube_client.pods_path(), self._pods, query={"fieldSelector": PENDING}, trim=trim_pod)
        )
        running = [tasks.guarded(reflector.run(), "reflector") for reflector in reflectors]
        try:
            await asyncio.gather(*running)
        finally:
            await tasks.stop(running)

    async def bind(self) -> None:
        """Schedule what is pending. Never returns."""
        storage = self._storage
        for store in (self._nodes, storage.claims, storage.volumes, storage.classes, self._pods):
            await store.synced()
        log.info("%d nodes, %d Pods pending", len(self._nodes), len(self._pods))
        for pod in self._pods.list():  # also those that we dropped when we led before
            self._queue.add(key(pod))
        running = [tasks.guarded(self._worker(), f"binder-{number}") for number in range(WORKERS)]
        try:
            await asyncio.gather(*running)
        finally:
            await tasks.stop(running)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self._unschedulable.discard(key(old))
            self._bound.discard(old["metadata"].get("uid", ""))
            self._queue.forget(key(old))
        elif old is None or old["spec"] != new["spec"]:  # our own condition must not make us try again
            self._queue.add(key(new))

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        if old is None or old["spec"] != new["spec"] or old["metadata"].get("labels") != new["metadata"].get("labels"):
            self._retry_all()

    def _storage_changed(self, old: Object | None, new: Object | None) -> None:
        """A claim, volume or class: Pods with claims may go on now."""
        for name in list(self._unschedulable):
            pod = self._pods.by_key(name)
            if pod is not None and claims.names(pod):
                self._queue.add(name)

    def _retry_all(self) -> None:
        for name in list(self._unschedulable):
            self._queue.add(name)

    async def _worker(self) -> None:
        while True:
            name = await self._queue.get()
            try:
                await self._schedule(name)
                self._queue.forget(name)
            except hpk_errors.APIError as exc:
                log.info("%s: not bound yet: %s", name, exc.message)
                self._queue.add_rate_limited(name)
            except Exception:
                log.exception("%s: not bound", name)
                self._queue.add_rate_limited(name)
            finally:
                self._queue.done(name)

    async def _schedule(self, name: str) -> None:
        """Bind one Pod, or say why not. Raises APIError for what should be tried again soon."""
        pod = self._pods.by_key(name)
        if pod is None or pod["metadata"].get("deletionTimestamp") or pod["spec"].get("nodeName"):
            return
        if pod["metadata"]["uid"] in self._bound or pod["spec"].get("schedulingGates"):
            return  # gates: the API server itself set the condition SchedulingGated
        nodes = sorted(self._nodes.list(), key=lambda node: str(node["metadata"]["name"]))
        if not claims.names(pod):
            node, message = filters.first_fit(pod, nodes)
        elif (problem := claims.problem(pod, self._storage)) is not None:
            node, message = None, filters.unavailable(len(nodes), problem)
        else:
            node, message = filters.first_fit(pod, nodes, lambda node: self._storage_refusal(pod, node))
        if node is None:
            await self._cannot(pod, message)
        elif await self._storage_ready(pod, node):
            await self._bind(pod, node["metadata"]["name"])

    def _storage_refusal(self, pod: Object, node: Object) -> str | None:
        found = claims.on_node(pod, self._storage, node)
        return found if isinstance(found, str) else None

    async def _storage_ready(self, pod: Object, node: Object) -> bool:
        """Do what the Pod's claims need on ``node``. False: the claims' next change brings the Pod back. Raises APIError."""
        work = claims.on_node(pod, self._storage, node) if claims.names(pod) else claims.Work()
        if isinstance(work, str) or work == claims.Work():
            return True
        self._unschedulable.add(key(pod))
        self._queue.add_after(key(pod), RETRY_SECONDS)
        for volume, claim in work.give:
            log.info("volume %s is given to claim %s", volume["metadata"]["name"], key(claim))
            path = kube_client.path("v1", "persistentvolumes", name=volume["metadata"]["name"])
            await self._client.patch(path, claims.gift(volume, claim))
        for claim in work.provision:
            annotations = {claims.SELECTED_NODE: node["metadata"]["name"]}
            if claims.SELECTED_NODE not in (claim["metadata"].get("annotations") or {}):
                path = kube_client.path("v1", "persistentvolumeclaims", claim["metadata"]["namespace"], claim["metadata"]["name"])
                await self._client.patch(path, {"metadata": {"uid": claim["metadata"]["uid"], "annotations": annotations}})
        return False

    async def _bind(self, pod: Object, node: str) -> None:
        metadata = pod["metadata"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        path = kube_client.pods_path(metadata["namespace"], metadata["name"], "binding")
        try:
            # the UID makes it safe to send twice
            await self._client.request("POST", path, {}, json.dumps(binding).encode())
        except (errors.NotFound, errors.Conflict) as exc:
            log.debug("%s: %s", key(pod), exc.message)  # deleted, or bound by somebody: the watch will say which
            return
        self._bound.add(metadata["uid"])
        self._unschedulable.discard(key(pod))
        if self._pods.by_uid(metadata["uid"]) is None:
            self._bound.discard(metadata["uid"])  # the watch was faster than the answer
        message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
        self._recorder.event(pod, "Normal", "Scheduled", message)

    async def _cannot(self, pod: Object, message: str) -> None:
        """The Pod stays pending: condition and Event as kube-scheduler's."""
        name = key(pod)
        self._unschedulable.add(name)
        self._queue.add_after(name, RETRY_SECONDS)
        self._recorder.event(pod, "Warning", "FailedScheduling", message)
        old: Object = next(iter(pod["status"]["conditions"]), {})
        if (old.get("status"), old.get("reason"), old.get("message")) == ("False", "Unschedulable", message):
            return
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": None,
            "lastTransitionTime": old.get("lastTransitionTime") if old.get("status") == "False" else records.now(),
        }
        if "generation" in pod["metadata"]:
            condition["observedGeneration"] = pod["metadata"]["generation"]
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [condition]}}
        path = kube_client.pods_path(pod["metadata"]["namespace"], pod["metadata"]["name"], "status")
        try:
            await self._client.patch(path, body, kind="strategic")
        except (errors.NotFound, errors.Conflict):
            pass  # deleted meanwhile
