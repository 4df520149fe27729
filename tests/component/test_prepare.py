"""Preparation of Pods against a real API server, as the node ``hpk`` with no more rights than the Node authorizer gives."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hpk import config as configuration
from hpk import errors, paths
from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors
from hpk.kube import store
from hpk.kubelet import images, podplan, prepare, tokens
from hpk.kubelet.volumes import manager
from tests.component.conftest import APIServer, until

pytestmark = pytest.mark.component

Object = dict[str, Any]


@pytest.fixture
async def admin(apiserver: APIServer) -> AsyncIterator[kube_client.Client]:
    async with kube_client.Client.from_kubeconfig(apiserver.admin, user_agent="test") as client:
        yield client


@pytest.fixture
async def preparer(apiserver: APIServer, admin: kube_client.Client, tmp_path: pathlib.Path) -> AsyncIterator[prepare.Preparer]:
    node = {"metadata": {"name": "hpk"}}
    try:
        await admin.create("/api/v1/nodes", node)
        status = {"status": {"allocatable": {"cpu": "8", "memory": "16Gi", "pods": "100"}}}
        await admin.patch("/api/v1/nodes/hpk/status", status, kind="merge")
    except kube_errors.AlreadyExists:
        pass  # an earlier test's
    services = store.Store()
    services.replace((await admin.list("/api/v1/services"))["items"])
    config = configuration.Config()
    where = paths.Paths(str(tmp_path / "state"))
    kubeconfig = apiserver.kubeconfig("system:node:hpk", "system:nodes")
    async with kube_client.Client.from_kubeconfig(kubeconfig, user_agent="test") as client:
        manager = images.ImageManager(config=config, paths=where)
        yield prepare.Preparer(client=client, config=config, paths=where, recorder=None, images=manager, services=services)


@pytest.fixture
def image(tmp_path: pathlib.Path) -> str:
    """An image folder: nothing has to be pulled."""
    (tmp_path / "image/etc").mkdir(parents=True)
    (tmp_path / "image/etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return str(tmp_path / "image")


async def create(admin: kube_client.Client, namespace: str, image: str, container: Object | None = None, **spec: Any) -> Object:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "p-", "namespace": namespace, "labels": {"app": "web"}},
        "spec": {"nodeName": "hpk", "containers": [{"name": "main", "image": image, **(container or {})}], **spec},
    }
    return await admin.create(kube_client.pods_path(namespace), body)


async def config_map(admin: kube_client.Client, namespace: str, name: str, **data: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    await admin.create(kube_client.path("v1", "configmaps", namespace), body)


async def test_everything_a_pod_refers_to(preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str) -> None:
    await config_map(admin, namespace, "kube-root-ca.crt", **{"ca.crt": "CA"})
    await config_map(admin, namespace, "cfg", KEY="value", file="text")
    secret = {"metadata": {"name": "sec"}, "data": {"pw": base64.b64encode(b"s3cret'\n$x").decode()}}
    await admin.create(kube_client.path("v1", "secrets", namespace), secret)
    pod = await create(
        admin,
        namespace,
        image,
        {
            "envFrom": [{"configMapRef": {"name": "cfg"}}],
            "env": [
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pw"}}},
                {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Gi"}}},
            ],
            "command": ["/bin/sh", "-c", "echo $(KEY)"],
            "volumeMounts": [{"name": "sec", "mountPath": "/sec"}, {"name": "scratch", "mountPath": "/scratch"}],
            "resources": {"requests": {"cpu": "2500m"}},
        },
        volumes=[{"name": "sec", "secret": {"secretName": "sec", "defaultMode": 0o400}}, {"name": "scratch", "emptyDir": {}}],
    )
    plan = await preparer.prepare(pod)
    container = plan.containers[0]
    assert container.command == ("/bin/sh", "-c", "echo value")
    assert (container.env["PW"], container.env["KEY"], container.env["file"]) == ("s3cret'\n$x", "value", "text")
    assert (container.env["CPUS"], container.env["MEM"]) == ("3", "16")
    assert container.env["KUBERNETES_SERVICE_HOST"] == "127.0.0.1"  # the API server itself, not its service address
    assert plan.job.cpus == 3
    # the automatic token, usable by this very Pod
    token_mount = next(mount for mount in container.mounts if mount.target == "/var/run/secrets/kubernetes.io/serviceaccount")
    assert token_mount.read_only
    with open(f"{token_mount.source}/token") as file:
        token = file.read()
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["kubernetes.io"]["pod"] == {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    assert pathlib.Path(token_mount.source, "namespace").read_text() == namespace
    assert pathlib.Path(token_mount.source, "ca.crt").read_text() == "CA"
    # nothing is readable by others, and secrets are in no other file than theirs
    pod_dir = paths.PodDir(plan.pod_dir)
    assert os.stat(pod_dir.root).st_mode & 0o777 == 0o700
    assert os.stat(pod_dir.token).st_mode & 0o777 == 0o600
    assert os.stat(pod_dir.env("main")).st_mode & 0o777 == 0o600
    assert os.stat(pod_dir.volume("sec") + "/pw").st_mode & 0o777 == 0o400
    # once more, as after a crash: the same plan, nothing rewritten
    before = os.readlink(pod_dir.volume("sec") + "/..data"), pathlib.Path(pod_dir.token).read_text()
    again = await preparer.prepare(await admin.get(kube_client.pods_path(namespace, pod["metadata"]["name"])))
    assert (again.containers, again.job, again.job_volumes) == (plan.containers, plan.job, plan.job_volumes)
    assert (os.readlink(pod_dir.volume("sec") + "/..data"), pathlib.Path(pod_dir.token).read_text()) == before


@pytest.mark.parametrize("way", ["volume", "env", "key"])
async def test_a_missing_config_map_and_its_appearance(
    preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str, way: str
) -> None:
    if way == "volume":
        pod = await create(
            admin, namespace, image, volumes=[{"name": "v", "configMap": {"name": "later"}}], automountServiceAccountToken=False
        )
        expected = ("ContainerCreating", None, "FailedMount", 'MountVolume.SetUp failed for volume "v" : configmap "later" not found')
    else:
        source = {"envFrom": [{"configMapRef": {"name": "later"}}]}
        if way == "key":
            source = {"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "K"}}}]}
        pod = await create(admin, namespace, image, source, automountServiceAccountToken=False)
        expected = ("CreateContainerConfigError", "main", "Failed", 'configmap "later" not found')
    with pytest.raises(errors.NotReady) as caught:
        await preparer.prepare(pod)
    assert (caught.value.reason, caught.value.container, caught.value.event, caught.value.message) == expected
    await config_map(admin, namespace, "later", K="1")
    plan = await preparer.prepare(pod)
    if way == "volume":
        assert pathlib.Path(paths.PodDir(plan.pod_dir).volume("v"), "K").read_text() == "1"
    else:
        assert plan.containers[0].env["X" if way == "key" else "K"] == "1"


async def test_missing_service_account_claim_and_foreign_secrets(
    preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str
) -> None:
    pod = await create(admin, namespace, image)
    pod["spec"]["serviceAccountName"] = "gone"
    with pytest.raises(errors.NotReady, match="failed to fetch token") as caught:
        await preparer.prepare(pod)
    assert caught.value.event == "FailedMount"
    claim = await create(
        admin, namespace, image, volumes=[{"name": "c", "persistentVolumeClaim": {"claimName": "none"}}], automountServiceAccountToken=False
    )
    with pytest.raises(errors.NotReady, match='volume "c" : persistentvolumeclaim "none" not found'):
        await preparer.prepare(claim)
    # what no Pod of the node refers to cannot be read: a reason, not a traceback
    secret = {"metadata": {"name": "private"}, "data": {}}
    await admin.create(kube_client.path("v1", "secrets", namespace), secret)
    other = await create(admin, namespace, image, automountServiceAccountToken=False)
    other["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "private"}}]
    with pytest.raises(errors.NotReady, match="forbidden") as caught:
        await preparer.prepare(other)
    assert caught.value.event == "FailedMount"


async def test_runtime_classes(preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str) -> None:
    classes = "/apis/node.k8s.io/v1/runtimeclasses"
    for handler in ("kata", "apptainer"):
        await admin.create(classes, {"metadata": {"name": f"{handler}-{namespace}"}, "handler": handler})
    pod = await create(admin, namespace, image, automountServiceAccountToken=False)
    pod["spec"]["runtimeClassName"] = f"apptainer-{namespace}"
    await preparer.prepare(pod)
    pod["spec"]["runtimeClassName"] = f"kata-{namespace}"
    with pytest.raises(errors.NotReady, match='no runtime for "kata" is configured') as caught:
        await preparer.prepare(pod)
    assert caught.value.event == "FailedCreatePodSandBox"


async def test_claims(preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str, tmp_path: pathlib.Path) -> None:
    name = f"pv-{namespace}"
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(tmp_path / "data"), "type": "DirectoryOrCreate"}, **common}
    volume["claimRef"] = {"namespace": namespace, "name": "c"}  # as the controller does when it binds
    await admin.create("/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": volume})
    body = {"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": name, **common}}
    claims = kube_client.path("v1", "persistentvolumeclaims", namespace)
    await admin.create(claims, body)
    mount = {"volumeMounts": [{"name": "c", "mountPath": "/data", "subPath": "a"}]}
    pod = await create(
        admin,
        namespace,
        image,
        mount,
        volumes=[{"name": "c", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}],
        automountServiceAccountToken=False,
    )
    with pytest.raises(errors.NotReady, match='persistentvolumeclaim "c" is not bound'):
        await preparer.prepare(pod)
    await admin.patch(f"{claims}/c/status", {"status": {"phase": "Bound"}}, kind="merge")
    plan = await preparer.prepare(pod)
    assert podplan.Mount(str(tmp_path / "data" / "a"), "/data", True) in plan.containers[0].mounts
    assert [(item.kind, item.type) for item in plan.job_volumes[:2]] == [("hostPath", "DirectoryOrCreate"), ("subPath", "")]


async def test_refresh(preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str) -> None:
    await config_map(admin, namespace, "cfg", a="1", gone="x")
    pod = await create(
        admin,
        namespace,
        image,
        volumes=[
            {"name": "v", "configMap": {"name": "cfg"}},
            {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ],
        automountServiceAccountToken=False,
    )
    plan = await preparer.prepare(pod)
    folder = pathlib.Path(paths.PodDir(plan.pod_dir).volume("v"))
    assert not await preparer.volumes.refresh(pod)
    await admin.patch(kube_client.path("v1", "configmaps", namespace, "cfg"), {"data": {"a": "2", "gone": None}}, kind="merge")
    changed = await admin.patch(kube_client.pods_path(namespace, pod["metadata"]["name"]), {"metadata": {"labels": {"app": "new"}}})
    assert await preparer.volumes.refresh(changed)
    assert (folder / "a").read_text() == "2"
    assert not (folder / "gone").exists()
    assert (folder.parent / "d" / "labels").read_text() == 'app="new"'
    await admin.delete(kube_client.path("v1", "configmaps", namespace, "cfg"))
    with pytest.raises(errors.NotReady, match='configmap "cfg" not found'):
        await preparer.volumes.refresh(changed)
    assert (folder / "a").read_text() == "2"  # what runs keeps what it has


async def test_running_pods_are_kept_fresh(
    preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "REFRESH_SECONDS", 0.2)
    await config_map(admin, namespace, "cfg", a="1")
    volume = {"volumes": [{"name": "v", "configMap": {"name": "cfg"}}], "automountServiceAccountToken": False}
    pods = [{**(await create(admin, namespace, image, **volume)), "status": {"phase": "Running"}} for _ in range(3)]
    folders = [pathlib.Path(paths.PodDir((await preparer.prepare(pod)).pod_dir).volume("v")) for pod in pods]
    prepare.remove(paths.PodDir(str(folders[2].parent.parent)))  # its worker was quicker than the list of Pods
    task = asyncio.create_task(preparer.volumes.keep_fresh(lambda: pods))
    try:
        await admin.patch(kube_client.path("v1", "configmaps", namespace, "cfg"), {"data": {"a": "2"}}, kind="merge")
        await until(lambda: all((folder / "a").read_text() == "2" for folder in folders[:2]))
    finally:
        task.cancel()
    assert not folders[2].parent.parent.exists()


async def test_tokens_are_renewed_in_time(
    preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "vault"}}
    volume = {"volumes": [{"name": "t", "projected": {"sources": [token]}}], "automountServiceAccountToken": False}
    pod = await create(admin, namespace, image, **volume)
    place = pathlib.Path(paths.PodDir((await preparer.prepare(pod)).pod_dir).volume("t")) / "token"
    first = place.read_text()
    start = time.time()
    monkeypatch.setattr(tokens.time, "time", lambda: start + 470)  # of 600 s; renewed after 80 %
    assert not await preparer.volumes.refresh(pod)
    monkeypatch.setattr(tokens.time, "time", lambda: start + 490)
    assert await preparer.volumes.refresh(pod)
    second = place.read_text()
    assert second != first
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": second, "audiences": ["vault"]}}
    assert (await admin.create("/apis/authentication.k8s.io/v1/tokenreviews", review))["status"]["authenticated"]


async def test_many_at_once(preparer: prepare.Preparer, admin: kube_client.Client, namespace: str, image: str) -> None:
    await config_map(admin, namespace, "kube-root-ca.crt", **{"ca.crt": "CA"})
    pods = [await create(admin, namespace, image) for _ in range(30)]
    began = asyncio.get_running_loop().time()
    plans = await asyncio.gather(*(preparer.prepare(pod) for pod in pods))
    assert len({plan.pod_dir for plan in plans}) == 30
    print(f"{(asyncio.get_running_loop().time() - began) / 30 * 1000:.1f} ms a Pod")
