"""Pod statuses and leftovers against a real API server; Slurm is played."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hpk import config, files, paths
from hpk.kube import client as kube_client
from hpk.kubelet import pod_controller, status, status_manager
from hpk.slurm import commands
from hpk.slurm.states import JobState
from tests.component.conftest import APIServer, pod, until

pytestmark = pytest.mark.component

NOW = "2026-01-02T03:04:05Z"
RUNNING = {
    "phase": "Running",
    "sandboxReady": True,
    "initialized": True,
    "hostIP": "10.0.0.1",
    "podIP": "10.0.0.1",
    "containerStatuses": [
        {
            "name": "main",
            "state": {"running": {"startedAt": NOW}},
            "ready": True,
            "started": True,
            "restartCount": 0,
            "containerID": "hpk://1",
        }
    ],
}


@pytest.fixture
async def client(apiserver: APIServer) -> AsyncIterator[kube_client.Client]:
    async with kube_client.Client.from_kubeconfig(apiserver.kubeconfig("system:node:hpk", "system:nodes"), user_agent="test") as found:
        yield found


@pytest.fixture
async def admin(apiserver: APIServer) -> AsyncIterator[kube_client.Client]:
    async with kube_client.Client.from_kubeconfig(apiserver.admin, user_agent="test") as found:
        yield found


@pytest.fixture
async def manager(client: kube_client.Client) -> AsyncIterator[status_manager.StatusManager]:
    found = status_manager.StatusManager(client)
    task = asyncio.create_task(found.run())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def made(obj: dict, before: dict | None = None, **values: Any) -> dict:
    return status.build(obj, status.Facts(now=NOW, start_time=NOW, **values), status.conditions(before or {}))


async def read(client: kube_client.Client, obj: dict) -> dict[str, Any]:
    return await client.get(kube_client.pods_path(obj["metadata"]["namespace"], obj["metadata"]["name"]))


async def create(admin: kube_client.Client, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return await admin.create(kube_client.pods_path(namespace), pod(namespace, name, nodeName="hpk", **spec))


async def test_status_is_what_was_set(
    manager: status_manager.StatusManager, client: kube_client.Client, admin: kube_client.Client, namespace: str
) -> None:
    obj = await create(admin, namespace, "a")
    manager.set(obj, made(obj))
    await manager.sent(obj["metadata"]["uid"])
    assert (await read(client, obj))["status"]["phase"] == "Pending"
    manager.set(obj, made(obj, report=RUNNING, images={"main": "busybox@sha256:1"}))
    await manager.sent(obj["metadata"]["uid"])
    found = (await read(client, obj))["status"]
    assert (found["phase"], found["podIP"], found["podIPs"], found["qosClass"]) == (
        "Running",
        "10.0.0.1",
        [{"ip": "10.0.0.1"}],
        "BestEffort",
    )
    assert found["containerStatuses"][0]["imageID"] == "busybox@sha256:1"
    ready = status.conditions(found)["Ready"]
    assert (ready["status"], ready.get("reason"), ready.get("message")) == ("True", None, None)
    assert status.patch(made(obj, found, report=RUNNING, images={"main": "busybox@sha256:1"}), found) is None


async def test_conditions_of_others_stay(
    manager: status_manager.StatusManager, client: kube_client.Client, admin: kube_client.Client, namespace: str
) -> None:
    obj = await create(admin, namespace, "a")
    gate = {"status": {"conditions": [{"type": "example.org/lb", "status": "True"}]}}
    await admin.patch(kube_client.pods_path(namespace, "a", "status"), gate, kind="strategic")
    manager.set(obj, made(obj, report=RUNNING))
    await manager.sent(obj["metadata"]["uid"])
    assert status.conditions((await read(client, obj))["status"])["example.org/lb"]["status"] == "True"


async def test_what_somebody_else_changes_of_ours_is_put_right(
    manager: status_manager.StatusManager, client: kube_client.Client, admin: kube_client.Client, namespace: str
) -> None:
    obj = await create(admin, namespace, "a")
    manager.set(obj, made(obj, report=RUNNING))
    await manager.sent(obj["metadata"]["uid"])
    changed = await admin.patch(kube_client.pods_path(namespace, "a", "status"), {"status": {"phase": "Pending"}}, kind="strategic")
    manager.observe(changed)
    await manager.sent(obj["metadata"]["uid"])
    assert (await read(client, obj))["status"]["phase"] == "Running"


async def test_end_is_final(
    manager: status_manager.StatusManager, client: kube_client.Client, admin: kube_client.Client, namespace: str
) -> None:
    obj = await create(admin, namespace, "a")
    uid = obj["metadata"]["uid"]
    manager.set(obj, made(obj, report=RUNNING, ended=status.Ended("Failed", "NodeFail", "gone", disruption=("NodeFail", "gone"))))
    await manager.sent(uid)
    manager.set(obj, made(obj, report=RUNNING))
    await manager.sent(uid)
    found = (await read(client, obj))["status"]
    assert (found["phase"], found["reason"]) == ("Failed", "NodeFail")
    assert found["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    assert status.conditions(found)["DisruptionTarget"]["reason"] == "NodeFail"


async def test_successor_of_the_same_name_does_not_get_it(
    manager: status_manager.StatusManager, client: kube_client.Client, admin: kube_client.Client, namespace: str
) -> None:
    old = await create(admin, namespace, "a")
    await admin.delete(kube_client.pods_path(namespace, "a"), {"gracePeriodSeconds": 0})
    new = await create(admin, namespace, "a")
    manager.set(old, made(old, report=RUNNING))
    await asyncio.wait_for(manager.sent(old["metadata"]["uid"]), 10)
    assert (await read(client, new))["status"]["phase"] == "Pending"
    assert "podIP" not in (await read(client, new))["status"]


async def test_newest_wins_after_an_outage(
    apiserver: APIServer, manager: status_manager.StatusManager, client: kube_client.Client, admin: kube_client.Client, namespace: str
) -> None:
    obj = await create(admin, namespace, "a")
    apiserver.stop("kube-apiserver")
    manager.set(obj, made(obj))
    await asyncio.sleep(1)
    manager.set(obj, made(obj, report=RUNNING))
    apiserver.start_apiserver()
    await asyncio.wait_for(manager.sent(obj["metadata"]["uid"]), 60)
    assert (await read(client, obj))["status"]["phase"] == "Running"


@dataclasses.dataclass
class World:
    """Slurm with one job of a lost Pod and one of somebody's own; workers that write down what they are told."""

    folder: str
    cancelled: list[str] = dataclasses.field(default_factory=list)
    told: list[tuple[str, bool]] = dataclasses.field(default_factory=list)

    async def all_jobs(self) -> dict[str, list[commands.Job]]:
        def job(job_id: str, uid: str, work_dir: str) -> list[commands.Job]:
            return [commands.Job(job_id, JobState.RUNNING, "RUNNING", "", "c1", "c1", 1.0, 1.0, 0.0, "a/b", work_dir, f"hpk uid={uid}")]

        return {"lost": job("7", "lost", f"{self.folder}/pods/a_b_lost"), "other": job("8", "other", "/home/elsewhere/pods/a_b_other")}

    async def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    def get(self, uid: str) -> bool | None:
        return True if uid in [name for name, _ in self.told] else None

    def update(self, obj: dict, *, gone: bool = False) -> None:
        self.told.append((obj["metadata"]["uid"], gone))


def controller(client: kube_client.Client, world: World) -> pod_controller.PodController:
    return pod_controller.PodController(
        client=client,
        config=config.Config(),
        paths=paths.Paths(world.folder),
        slurm=world,  # type: ignore[arg-type]
        generator=world,  # type: ignore[arg-type]
        workers=world,  # type: ignore[arg-type]
    )


def leave_a_folder(world: World, uid: str) -> None:
    folder = paths.Paths(world.folder).pod("default", "left", uid)
    files.private_dir(folder.root)
    files.write_json(folder.plan, {"terminationGracePeriodSeconds": 3})


async def test_leftovers_are_found_after_a_whole_list(
    client: kube_client.Client, admin: kube_client.Client, namespace: str, tmp_path: pathlib.Path
) -> None:
    obj = await create(admin, namespace, "here")
    world = World(str(tmp_path))
    leave_a_folder(world, "left-over")
    files.private_dir(paths.Paths(world.folder).pod(namespace, "here", obj["metadata"]["uid"]).root)
    task = asyncio.create_task(controller(client, world).run())
    try:
        await until(lambda: len([uid for uid, gone in world.told if gone]) == 1 and world.cancelled)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (obj["metadata"]["uid"], False) in world.told
    assert ("left-over", True) in world.told
    assert world.cancelled == ["7"]


async def test_nothing_is_left_over_while_the_api_server_is_away(apiserver: APIServer, tmp_path: pathlib.Path) -> None:
    world = World(str(tmp_path))
    leave_a_folder(world, "left-over")
    kubeconfig = apiserver.kubeconfig("system:node:hpk", "system:nodes")
    text = pathlib.Path(kubeconfig).read_text().replace(apiserver.url, "https://127.0.0.1:1")
    away = tmp_path / "away.kubeconfig"
    away.write_text(text)
    os.chmod(away, 0o600)
    async with kube_client.Client.from_kubeconfig(str(away), user_agent="test") as client:
        task = asyncio.create_task(controller(client, world).run())
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (world.told, world.cancelled) == ([], [])
