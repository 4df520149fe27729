"""The node's Pods in the API, each with its worker; and what is left of Pods that the API has no more.

Nothing is taken for left over before the API server has given a whole list: an API server that does not answer, or not yet, is no
reason to end anything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from hpk import config as configuration
from hpk import errors, files, paths, tasks
from hpk.kube import client as kube_client
from hpk.kube import store, watch
from hpk.kubelet import pleg, pod_workers
from hpk.slurm import commands

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Pace of the search for leftovers, and the age in seconds that a folder must have to be one.
HOUSEKEEPING_SECONDS = 60.0
LEFTOVER_SECONDS = 60.0


class PodController:
    """Owns the store of this node's Pods; ``pods()`` serves the kubelet's API."""

    def __init__(
        self,
        *,
        client: kube_client.Client,
        config: configuration.Config,
        paths: paths.Paths,
        slurm: commands.Slurm,
        generator: pleg.Pleg,
        workers: pod_workers.PodWorkers,
    ) -> None:
        self._paths = paths
        self._slurm = slurm
        self._pleg = generator
        self._workers = workers
        self._store = store.Store()
        query = {"fieldSelector": f"spec.nodeName={config.cluster.node_name}"}
        self._reflector = watch.Reflector(client, kube_client.pods_path(), self._store, query=query)
        self._first: asyncio.Task[dict[str, list[commands.Job]]] | None = None

    def pods(self) -> list[Object]:
        return self._store.list()

    async def synced(self) -> None:
        """Wait until the API server has told of all Pods once."""
        await self._store.synced()

    async def run(self) -> None:
        """Never returns."""
        self._store.subscribe(self._on_change)
        running = [
            tasks.guarded(self._reflector.run(), "pods"),
            tasks.guarded(self._housekeeping(), "housekeeping"),
        ]
        try:
            await asyncio.gather(*running)
        finally:
            await tasks.stop([*running, *([self._first] if self._first else [])])

    async def first_look(self) -> dict[str, list[commands.Job]]:
        """The jobs by Pod UID that Slurm had at the start; waits until it has answered once."""
        if self._first is None:
            self._first = asyncio.create_task(self._look())
        return await asyncio.shield(self._first)

    async def _look(self) -> dict[str, list[commands.Job]]:
        while True:
            try:
                return await self._pleg.all_jobs()
            except errors.SlurmUnknown:
                await asyncio.sleep(2.0)

    def _on_change(self, old: Object | None, new: Object | None) -> None:
        if new is not None:
            self._workers.update(new)
        elif old is not None and self._workers.get(old["metadata"]["uid"]) is not None:
            self._workers.update(old, gone=True)

    async def _housekeeping(self) -> None:
        await self._store.synced()
        await self._end_lost_jobs(await self.first_look())
        young = 0.0  # at the start every folder counts: who makes new ones has a worker
        while True:
            await self._find_leftovers(young)
            young = LEFTOVER_SECONDS
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def _find_leftovers(self, min_age: float) -> None:
        for entry in await asyncio.to_thread(_folders, self._paths.pods, min_age):
            namespace, _, rest = entry.partition("_")
            name, _, uid = rest.rpartition("_")
            if not uid or not name or self._workers.get(uid) is not None:
                continue
            log.info("Pod %s/%s (%s) is no longer in the API: removing what is left of it", namespace, name, uid)
            self._workers.update(_remains(self._paths.pod(namespace, name, uid), namespace, name, uid), gone=True)

    async def _end_lost_jobs(self, jobs: dict[str, list[commands.Job]]) -> None:
        """End jobs of ours whose Pod and folder are both gone."""
        root = os.path.join(self._paths.pods, "")
        for uid, several in jobs.items():
            for job in several:
                if job.state.ended or not job.work_dir.startswith(root) or os.path.isdir(job.work_dir):
                    continue
                if self._workers.get(uid) is None:
                    log.warning("Slurm job %s (%s) belongs to no Pod any more: cancelled", job.job_id, job.name)
                    try:
                        await self._slurm.cancel(job.job_id)
                    except errors.SlurmUnknown as exc:
                        log.warning("%s", exc.message)


def _folders(root: str, min_age: float) -> list[str]:
    try:
        with os.scandir(root) as entries:
            now = time.time()
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and now - entry.stat().st_mtime >= min_age]
    except FileNotFoundError:
        return []


def _remains(pod_dir: paths.PodDir, namespace: str, name: str, uid: str) -> Object:
    """As much of a Pod as its folder tells: enough to end it."""
    try:
        plan = files.read_json(pod_dir.plan) or {}
    except (ValueError, OSError):
        plan = {}
    return {
        "metadata": {"namespace": namespace, "name": name, "uid": uid},
        "spec": {"containers": [], "terminationGracePeriodSeconds": plan.get("terminationGracePeriodSeconds", 30)},
        "status": {},
    }
