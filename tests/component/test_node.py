"""The virtual node against a real API server, with a kubelet's rights only (Node authorizer, NodeRestriction). Slurm is played."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hpk import config, errors, paths
from hpk.kube import client as kube_client
from hpk.kube import events
from hpk.kubelet import node_controller
from hpk.slurm import commands
from tests.component.conftest import APIServer, until

pytestmark = pytest.mark.component

Object = dict[str, Any]
NODE = kube_client.path("v1", "nodes", name="hpk")
LEASE = kube_client.path("coordination.k8s.io/v1", "leases", "kube-node-lease", "hpk")


class PlayedSlurm:
    """Answers like hpk.slurm.commands.Slurm.capacity()."""

    def __init__(self) -> None:
        self.answer: commands.Capacity | None = commands.Capacity(cpus=96, memory_bytes=3 * 2**37, gres={"gpu": 4, "gpu:a100": 4}, nodes=3)

    async def capacity(self) -> commands.Capacity:
        if self.answer is None:
            raise errors.SlurmUnknown("sinfo: Unable to contact slurm controller (connect failure)")
        return self.answer


@pytest.fixture
async def admin(apiserver: APIServer) -> AsyncIterator[kube_client.Client]:
    async with kube_client.Client.from_kubeconfig(apiserver.admin, user_agent="hpk-test") as found:
        for leftover in (NODE, LEASE):
            with contextlib.suppress(errors.APIError):
                await found.delete(leftover)
        if "kube-node-lease" not in [n["metadata"]["name"] for n in (await found.list("/api/v1/namespaces"))["items"]]:
            await found.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}})
        yield found
        for leftover in (NODE, LEASE):
            with contextlib.suppress(errors.APIError):
                await found.delete(leftover)


@contextlib.asynccontextmanager
async def kubelet(apiserver: APIServer, folder: Any, slurm: PlayedSlurm, port: int = 10250) -> AsyncIterator[None]:
    credentials = apiserver.kubeconfig("system:node:hpk", "system:nodes")
    settings = config.Config(kubelet=dataclasses.replace(config.KubeletConfig(), status_update_seconds=0.2, lease_seconds=4))
    async with kube_client.Client.from_kubeconfig(credentials, user_agent="hpk-kubelet-test") as client:
        recorder = events.Recorder(client, "kubelet", "hpk")
        controller = node_controller.NodeController(
            client=client,
            config=settings,
            paths=paths.Paths(os.fspath(folder)),
            recorder=recorder,
            slurm=slurm,
            address="10.1.2.3",
            port=port,
        )
        task = asyncio.create_task(controller.run())
        try:
            yield
        finally:
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await recorder.stop()


async def condition(client: kube_client.Client, kind: str) -> Object:
    node = await client.get(NODE)
    return next((c for c in node["status"].get("conditions", []) if c["type"] == kind), {})


async def ready(client: kube_client.Client) -> bool:
    try:
        return (await condition(client, "Ready")).get("status") == "True"
    except errors.APIError:
        return False


async def test_registers_as_a_node_should(apiserver: APIServer, admin: kube_client.Client, tmp_path: Any) -> None:
    async with kubelet(apiserver, tmp_path, PlayedSlurm(), port=12345):
        await until(lambda: ready(admin))
        node = await admin.get(NODE)
        assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "hpk"
        assert node["metadata"]["labels"]["type"] == "virtual-kubelet"
        status = node["status"]
        assert status["capacity"]["cpu"] == "96"
        assert status["capacity"]["memory"] == "384Gi"
        assert status["capacity"]["pods"] == "10k"
        assert status["capacity"]["nvidia.com/gpu"] == "4"
        assert status["allocatable"] == status["capacity"]
        assert {"type": "InternalIP", "address": "10.1.2.3"} in status["addresses"]
        assert status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 12345
        assert status["nodeInfo"]["kernelVersion"] == os.uname().release
        assert [c["type"] for c in status["conditions"] if c["status"] == "True"] == ["SlurmReachable", "Ready"]
        assert status["conditions"][-1]["type"] == "Ready"
        version = node["metadata"]["resourceVersion"]
        await asyncio.sleep(1)  # several rounds, and nothing to say
        assert (await admin.get(NODE))["metadata"]["resourceVersion"] == version
        shown = apiserver.kubectl("get", "node", "hpk", "-o", "wide")
        assert " Ready " in shown.stdout, shown
        assert "v1.36.0-hpk" in shown.stdout


async def test_lease_is_renewed(apiserver: APIServer, admin: kube_client.Client, tmp_path: Any) -> None:
    async def renewed() -> str:
        try:
            return str((await admin.get(LEASE))["spec"]["renewTime"])
        except errors.APIError:
            return ""

    async with kubelet(apiserver, tmp_path, PlayedSlurm()):
        first = await until(renewed)
        found = await admin.get(LEASE)
        assert found["spec"]["holderIdentity"] == "hpk"
        assert found["spec"]["leaseDurationSeconds"] == 4
        assert found["metadata"]["ownerReferences"][0]["uid"] == (await admin.get(NODE))["metadata"]["uid"]

        async def later() -> bool:
            return await renewed() > first

        await until(later, 5)


async def test_silent_slurm_does_not_make_the_node_unready(
    apiserver: APIServer, admin: kube_client.Client, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_controller, "CAPACITY_SECONDS", 0.1)
    slurm = PlayedSlurm()
    async with kubelet(apiserver, tmp_path, slurm):
        await until(lambda: ready(admin))
        before = await condition(admin, "Ready")
        slurm.answer = None

        async def silent() -> bool:
            return (await condition(admin, "SlurmReachable")).get("status") == "False"

        await until(silent)
        found = await condition(admin, "SlurmReachable")
        assert (found["reason"], found["message"]) == ("SlurmNotAnswering", "sinfo: Unable to contact slurm controller (connect failure)")
        after = await condition(admin, "Ready")
        assert after["status"] == "True"
        assert after["lastTransitionTime"] == before["lastTransitionTime"]
        assert "Slurm has not answered since" in after["message"]
        assert (await admin.get(NODE))["status"]["capacity"]["cpu"] == "96"
        slurm.answer = commands.Capacity(cpus=32, memory_bytes=2**37, gres={}, nodes=1)

        async def smaller() -> bool:
            return (await admin.get(NODE))["status"]["capacity"]["cpu"] == "32"

        await until(smaller)
        node = await admin.get(NODE)
        assert "nvidia.com/gpu" not in node["status"]["capacity"]
        assert (await condition(admin, "SlurmReachable"))["message"] == "Slurm has 1 compute node"

        async def told() -> bool:
            found = (await admin.list("/api/v1/events", fieldSelector="involvedObject.kind=Node"))["items"]
            return {"Starting", "SlurmNotAnswering", "SlurmAnswering"} <= {event["reason"] for event in found}

        await until(told)


async def test_not_ready_until_slurm_answered_once(apiserver: APIServer, admin: kube_client.Client, tmp_path: Any) -> None:
    slurm = PlayedSlurm()
    answer, slurm.answer = slurm.answer, None
    async with kubelet(apiserver, tmp_path, slurm):

        async def there() -> bool:
            try:
                return bool(await condition(admin, "Ready"))
            except errors.APIError:
                return False

        await until(there)
        found = await condition(admin, "Ready")
        assert found["status"] == "False"
        assert "missing node capacity for resources: cpu" in found["message"]
        assert "Unable to contact slurm controller" in found["message"]
        slurm.answer = answer
        await until(lambda: ready(admin))


async def test_taints_cordon_and_foreign_labels_stay(apiserver: APIServer, admin: kube_client.Client, tmp_path: Any) -> None:
    async with kubelet(apiserver, tmp_path, PlayedSlurm()):
        await until(lambda: ready(admin))
    body = {"metadata": {"labels": {"site": "here", "type": "wrong"}}, "spec": {"unschedulable": True}}
    await admin.patch(NODE, body)
    other = {"type": "Leaking", "status": "False", "reason": "Dry", "message": ""}
    await admin.patch(f"{NODE}/status", {"status": {"conditions": [other]}}, kind="strategic")
    async with kubelet(apiserver, tmp_path, PlayedSlurm(), port=4444):

        async def updated() -> bool:
            found = (await admin.get(NODE))["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
            return bool(found == 4444)

        await until(updated)
        node = await admin.get(NODE)
        assert node["spec"]["unschedulable"] is True
        assert node["metadata"]["labels"]["site"] == "here"
        assert node["metadata"]["labels"]["type"] == "virtual-kubelet"
        assert (await condition(admin, "Leaking"))["reason"] == "Dry"


async def test_deleted_node_comes_back(apiserver: APIServer, admin: kube_client.Client, tmp_path: Any) -> None:
    async with kubelet(apiserver, tmp_path, PlayedSlurm()):
        await until(lambda: ready(admin))
        old = (await admin.get(NODE))["metadata"]["uid"]
        await admin.delete(NODE)
        await until(lambda: ready(admin))
        new = (await admin.get(NODE))["metadata"]["uid"]
        assert new != old

        async def owned() -> bool:
            return bool((await admin.get(LEASE))["metadata"]["ownerReferences"][0]["uid"] == new)

        await until(owned)


async def test_server_restart(apiserver: APIServer, admin: kube_client.Client, tmp_path: Any) -> None:
    async with kubelet(apiserver, tmp_path, PlayedSlurm()):
        await until(lambda: ready(admin))
        first = (await admin.get(LEASE))["spec"]["renewTime"]
        apiserver.stop("kube-apiserver", 9)
        await asyncio.sleep(1)
        apiserver.start_apiserver(wait=False)
        await asyncio.to_thread(apiserver.wait_ready)

        async def later() -> bool:
            return bool((await admin.get(LEASE))["spec"]["renewTime"] > first)

        await until(later, 10)


async def test_with_the_controllers_pods_get_to_the_node(
    apiserver: APIServer, admin: kube_client.Client, namespace: str, tmp_path: Any
) -> None:
    """The taint of a new node goes by itself, and a Deployment's Pods and a DaemonSet's land on it."""
    apiserver.start_controller_manager()
    kubeconfig = apiserver.kubeconfig("system:kube-scheduler")
    scheduler = await asyncio.create_subprocess_exec(sys.executable, "-m", "hpk", "scheduler", "--kubeconfig", kubeconfig)
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "main", "image": "busybox"}]}}
    spec = {"selector": {"matchLabels": {"app": "x"}}, "template": template}
    for plural, kind, more in (("deployments", "Deployment", {"replicas": 3}), ("daemonsets", "DaemonSet", {})):
        body = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x"}, "spec": {**spec, **more}}
        await admin.create(kube_client.path("apps/v1", plural, namespace), body)

    async def bound() -> bool:
        pods = (await admin.list(kube_client.pods_path(namespace)))["items"]
        return len(pods) == 4 and all(pod["spec"].get("nodeName") == "hpk" for pod in pods)

    try:
        async with kubelet(apiserver, tmp_path, PlayedSlurm()):
            await until(lambda: ready(admin), 20)
            await until(bound, 30)
            assert not (await admin.get(NODE))["spec"].get("taints")
            assert scheduler.returncode is None
    finally:
        scheduler.terminate()
        await scheduler.wait()
        apiserver.stop("kube-controller-manager")
