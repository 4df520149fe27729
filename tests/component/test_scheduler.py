"""The scheduler as its own process, against a real API server and with the rights of system:kube-scheduler only."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from hpk.kube import client as kube_client
from tests.component.conftest import APIServer, pod, until

pytestmark = pytest.mark.component

Object = dict[str, Any]
NODES = kube_client.path("v1", "nodes")


@pytest.fixture
async def client(apiserver: APIServer) -> AsyncIterator[kube_client.Client]:
    async with kube_client.Client.from_kubeconfig(apiserver.admin, user_agent="hpk-test") as found:
        yield found


def start(apiserver: APIServer) -> subprocess.Popen[bytes]:
    kubeconfig = apiserver.kubeconfig("system:kube-scheduler")
    with open(os.path.join(apiserver.folder, "scheduler.log"), "ab") as log:
        return subprocess.Popen([sys.executable, "-m", "hpk", "scheduler", "-v", "--kubeconfig", kubeconfig], stdout=log, stderr=log)


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(15)


@pytest.fixture
def scheduler(apiserver: APIServer) -> Iterator[subprocess.Popen[bytes]]:
    process = start(apiserver)
    yield process
    if process.poll() is None:
        assert end(process) == 0, apiserver.log("scheduler")[-3000:]
    assert "Traceback" not in apiserver.log("scheduler"), apiserver.log("scheduler")[-3000:]


@pytest.fixture
async def node(client: kube_client.Client) -> AsyncIterator[Object]:
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hpk", "labels": {"kind": "virtual", "cores": "8"}}}
    made = await client.create(NODES, body)
    # the API server's admission taints a new node until its kubelet is ready
    yield await client.patch(f"{NODES}/hpk", {"spec": {"taints": []}, "metadata": {"uid": made["metadata"]["uid"]}})
    await client.delete(f"{NODES}/hpk")


async def create(client: kube_client.Client, namespace: str, name: str, **spec: Any) -> Object:
    return await client.create(kube_client.pods_path(namespace), pod(namespace, name, **spec))


async def read(client: kube_client.Client, namespace: str, name: str) -> Object:
    return await client.get(kube_client.pods_path(namespace, name))


async def node_of(client: kube_client.Client, namespace: str, name: str) -> str:
    return str((await read(client, namespace, name))["spec"].get("nodeName", ""))


async def condition(client: kube_client.Client, namespace: str, name: str) -> Object:
    found = (await read(client, namespace, name))["status"].get("conditions") or []
    return next((c for c in found if c["type"] == "PodScheduled"), {})


async def reasons(client: kube_client.Client, namespace: str, name: str) -> dict[str, str]:
    path = kube_client.path("v1", "events", namespace)
    found = (await client.list(path, fieldSelector=f"involvedObject.name={name}"))["items"]
    return {event["reason"]: event["message"] for event in found}


async def test_binds_at_once(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await create(client, namespace, "plain")
    await until(lambda: node_of(client, namespace, "plain"))
    assert await node_of(client, namespace, "plain") == "hpk"
    assert (await condition(client, namespace, "plain"))["status"] == "True"
    await until(lambda: reasons(client, namespace, "plain"))
    assert await reasons(client, namespace, "plain") == {"Scheduled": f"Successfully assigned {namespace}/plain to hpk"}


async def test_many_pods(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await asyncio.gather(*(create(client, namespace, f"p{number}") for number in range(120)))

    async def all_bound() -> bool:
        items = (await client.list(kube_client.pods_path(namespace)))["items"]
        return all(item["spec"].get("nodeName") == "hpk" for item in items)

    await until(all_bound, 30)


async def test_huge_requests_are_slurms_business(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    containers = [{"name": "main", "image": "busybox", "resources": {"requests": {"cpu": "100000", "memory": "1Ei"}}}]
    await create(client, namespace, "huge", containers=containers)
    await until(lambda: node_of(client, namespace, "huge"))


async def test_selector_waits_for_a_label(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await create(client, namespace, "picky", nodeSelector={"gpu": "a100"})
    await until(lambda: reasons(client, namespace, "picky"))
    message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    assert await reasons(client, namespace, "picky") == {"FailedScheduling": message}
    found = await until(lambda: condition(client, namespace, "picky"))
    assert (found["status"], found["reason"], found["message"]) == ("False", "Unschedulable", message)
    await client.patch(f"{NODES}/hpk", {"metadata": {"labels": {"gpu": "a100"}}})
    await until(lambda: node_of(client, namespace, "picky"))
    found = await condition(client, namespace, "picky")
    assert found["status"] == "True"


async def test_cordon_and_taint(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await client.patch(f"{NODES}/hpk", {"spec": {"taints": [{"key": "maintenance", "value": "yes", "effect": "NoSchedule"}]}})
    await create(client, namespace, "patient")
    await create(client, namespace, "bold", tolerations=[{"key": "maintenance", "operator": "Exists"}])
    await until(lambda: node_of(client, namespace, "bold"))
    found = await until(lambda: condition(client, namespace, "patient"))
    assert found["message"] == "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
    await client.patch(f"{NODES}/hpk", {"spec": {"taints": [], "unschedulable": True}})

    async def cordoned() -> bool:
        return "unschedulable" in (await condition(client, namespace, "patient")).get("message", "")

    await until(cordoned)
    assert not await node_of(client, namespace, "patient")
    await client.patch(f"{NODES}/hpk", {"spec": {"unschedulable": None}})
    await until(lambda: node_of(client, namespace, "patient"))


async def test_gated_pod_waits(apiserver: APIServer, client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await create(client, namespace, "gated", schedulingGates=[{"name": "example.org/quota"}])
    await create(client, namespace, "after")
    await until(lambda: node_of(client, namespace, "after"))
    assert not await node_of(client, namespace, "gated")
    assert (await condition(client, namespace, "gated"))["reason"] == "SchedulingGated"
    assert await reasons(client, namespace, "gated") == {}
    assert f"{namespace}/gated" not in apiserver.log("scheduler")  # not even tried
    await client.patch(kube_client.pods_path(namespace, "gated"), {"spec": {"schedulingGates": []}})
    await until(lambda: node_of(client, namespace, "gated"))


async def test_others_pods_are_left_alone(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await create(client, namespace, "named", nodeName="elsewhere")
    await create(client, namespace, "foreign", schedulerName="somebody")
    await create(client, namespace, "ours")
    await until(lambda: node_of(client, namespace, "ours"))
    assert await node_of(client, namespace, "named") == "elsewhere"
    assert await node_of(client, namespace, "foreign") == ""
    assert await reasons(client, namespace, "foreign") == {}


async def test_no_node_at_all_then_one(client: kube_client.Client, namespace: str, scheduler: Any) -> None:
    await create(client, namespace, "early")
    found = await until(lambda: condition(client, namespace, "early"))
    assert found["message"] == "no nodes available to schedule pods"
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "late"}}
    await client.create(NODES, body)
    await client.patch(f"{NODES}/late", {"spec": {"taints": []}})
    try:
        await until(lambda: node_of(client, namespace, "early"))
    finally:
        await client.delete(f"{NODES}/late")


async def test_claims(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    """A missing claim, an unbound one, and one that waits for its consumer."""
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    await create(client, namespace, "user", volumes=volumes)
    found = await until(lambda: condition(client, namespace, "user"))
    assert found["message"] == '0/1 nodes are available: persistentvolumeclaim "data" not found.'
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": f"late-{namespace}"},
        "provisioner": "hpk.io/test",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    await client.create(kube_client.path("storage.k8s.io/v1", "storageclasses"), storage_class)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": namespace},
        "spec": {
            "storageClassName": f"late-{namespace}",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    claims = kube_client.path("v1", "persistentvolumeclaims", namespace)
    await client.create(claims, claim)

    async def selected() -> str:
        annotations = (await client.get(f"{claims}/data"))["metadata"].get("annotations") or {}
        return str(annotations.get("volume.kubernetes.io/selected-node", ""))

    assert await until(selected) == "hpk"
    assert not await node_of(client, namespace, "user")
    await client.create(
        claims, {**claim, "metadata": {"name": "now", "namespace": namespace}, "spec": {**claim["spec"], "storageClassName": ""}}
    )
    await create(client, namespace, "other", volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "now"}}])
    found = await until(lambda: condition(client, namespace, "other"))
    assert found["message"] == "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pv-{namespace}"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp"}},
    }
    await client.create(kube_client.path("v1", "persistentvolumes"), volume)
    bound = {"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": f"pv-{namespace}"}}
    await client.patch(f"{claims}/data", bound)
    await until(lambda: node_of(client, namespace, "user"))


async def test_one_instance_binds_and_the_next_takes_over(
    apiserver: APIServer, client: kube_client.Client, namespace: str, node: Object, scheduler: subprocess.Popen[bytes]
) -> None:
    await create(client, namespace, "first")
    await until(lambda: node_of(client, namespace, "first"))
    second = start(apiserver)
    try:
        await until(lambda: "waiting" in apiserver.log("scheduler"))
        scheduler.kill()  # no goodbye
        scheduler.wait()
        await create(client, namespace, "second")
        await until(lambda: node_of(client, namespace, "second"), 8)  # sooner than the lease's 15 s: its holder is seen to be dead
    finally:
        assert end(second) == 0


async def test_server_restart(
    apiserver: APIServer, client: kube_client.Client, namespace: str, node: Object, scheduler: subprocess.Popen[bytes]
) -> None:
    await create(client, namespace, "first")
    await until(lambda: node_of(client, namespace, "first"))
    apiserver.stop("kube-apiserver", 9)
    apiserver.start_apiserver(wait=False)
    await asyncio.to_thread(apiserver.wait_ready)
    await create(client, namespace, "second")
    await until(lambda: node_of(client, namespace, "second"), 15)
    assert scheduler.poll() is None


async def test_deleted_while_pending(client: kube_client.Client, namespace: str, node: Object, scheduler: Any) -> None:
    await create(client, namespace, "gone", nodeSelector={"no": "where"})
    await until(lambda: condition(client, namespace, "gone"))
    await client.delete(kube_client.pods_path(namespace, "gone"), gracePeriodSeconds=0)
    await create(client, namespace, "gone")  # same name, another Pod
    await until(lambda: node_of(client, namespace, "gone"))


async def test_a_local_volume_without_provisioner(
    apiserver: APIServer, client: kube_client.Client, namespace: str, node: Object, scheduler: Any
) -> None:
    """The scheduler gives the volume to the claim, the controller binds them, and the Pod goes where the volume is."""
    apiserver.start_controller_manager()
    name = f"local-{namespace}"
    await client.patch(f"{NODES}/hpk", {"metadata": {"labels": {"kubernetes.io/hostname": "hpk"}}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
    await client.patch(f"{NODES}/hpk/status", {"status": {"conditions": [ready]}}, kind="strategic")
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    await client.create(kube_client.path("storage.k8s.io/v1", "storageclasses"), storage_class)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"storageClassName": name, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await client.create(kube_client.path("v1", "persistentvolumeclaims", namespace), claim)
    await create(client, namespace, "user", volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])
    found = await until(lambda: condition(client, namespace, "user"))
    assert found["message"] == "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind."
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["hpk"]}]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": name,
            "local": {"path": "/scratch"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }
    try:
        await client.create(kube_client.path("v1", "persistentvolumes"), volume)
        await until(lambda: node_of(client, namespace, "user"), 30)
        assert (await client.get(kube_client.path("v1", "persistentvolumeclaims", namespace, "data")))["status"]["phase"] == "Bound"
    finally:
        apiserver.stop("kube-controller-manager")


async def test_long_outage(
    apiserver: APIServer, client: kube_client.Client, namespace: str, node: Object, scheduler: subprocess.Popen[bytes]
) -> None:
    """Longer than a leader may go without renewing: it stops leading, and leads again without being started anew."""
    await create(client, namespace, "first")
    await until(lambda: node_of(client, namespace, "first"))
    apiserver.stop("kube-apiserver", 9)
    await until(lambda: "waiting to lead again" in apiserver.log("scheduler"), 40)
    apiserver.start_apiserver(wait=False)
    await asyncio.to_thread(apiserver.wait_ready)
    await create(client, namespace, "second")
    await until(lambda: node_of(client, namespace, "second"), 20)
    assert scheduler.poll() is None
