"""The kubelet's HTTPS API behind a real API server: kubectl logs, and who may ask what. Log files are written by the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from hpk import config, paths, records
from hpk.kube import client as kube_client
from hpk.kubelet.server import app
from tests.component.conftest import BINARIES, APIServer, pod, until

pytestmark = pytest.mark.component

Object = dict[str, Any]
NODE = kube_client.path("v1", "nodes", name="hpk")


class Kubelet:
    """The server under test and what a kubelet around it would do."""

    def __init__(self, apiserver: APIServer, client: kube_client.Client, where: paths.Paths) -> None:
        self.apiserver = apiserver
        self.client = client
        self.paths = where
        self.pods: list[Object] = []
        self.port = 0

    async def pod(self, namespace: str, name: str, status: Object, **spec: Any) -> Object:
        made = await self.client.create(kube_client.pods_path(namespace), pod(namespace, name, nodeName="hpk", **spec))
        status = {"phase": "Running", **status}
        made = await self.client.patch(kube_client.pods_path(namespace, name, "status"), {"status": status})
        self.pods.append(made)
        return made

    def log(self, made: Object, container: str = "main", restart: int = 0) -> str:
        metadata = made["metadata"]
        path = self.paths.pod(metadata["namespace"], metadata["name"], metadata["uid"]).log(container, restart)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def set_state(self, made: Object, state: Object) -> None:
        self.pods = [
            {**known, "status": {**known["status"], "containerStatuses": [{**known["status"]["containerStatuses"][0], "state": state}]}}
            if known["metadata"]["uid"] == made["metadata"]["uid"]
            else known
            for known in self.pods
        ]

    async def kubectl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.apiserver.kubectl, *words)


def running(uid: str = "u", name: str = "main", restart: int = 0, **more: Any) -> Object:
    status = {
        "name": name,
        "image": "i",
        "imageID": "",
        "ready": True,
        "restartCount": restart,
        "containerID": f"hpk://{uid}/{name}/{restart}",
        "state": {"running": {"startedAt": records.now()}},
    }
    return {**status, **more}


def record(text: str, stream: str = "stdout", tag: str = "F", at: float | None = None) -> bytes:
    return f"{records.now_nano(at)} {stream} {tag} {text}\n".encode()


def append(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


@pytest.fixture
async def kubelet(apiserver: APIServer, tmp_path: Any) -> AsyncIterator[Kubelet]:
    where = paths.Paths(os.fspath(tmp_path))
    os.makedirs(where.pki)
    certificate, key = apiserver.authority.issue("serving", "hpk", hosts=("127.0.0.1", "hpk"))
    os.symlink(certificate, os.path.join(where.pki, "kubelet.crt"))
    os.symlink(key, os.path.join(where.pki, "kubelet.key"))
    os.symlink(apiserver.authority.certificate, where.ca_cert)
    credentials = apiserver.kubeconfig("system:node:hpk", "system:nodes")
    async with contextlib.AsyncExitStack() as stack:
        admin = await stack.enter_async_context(kube_client.Client.from_kubeconfig(apiserver.admin, user_agent="t"))
        own = await stack.enter_async_context(kube_client.Client.from_kubeconfig(credentials, user_agent="t"))
        found = Kubelet(apiserver, admin, where)
        server = app.Server(config=config.Config(), paths=where, client=own, pods=lambda: found.pods)
        found.port = await server.start("127.0.0.1")
        await admin.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hpk"}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": found.port}},
        }
        await admin.patch(f"{NODE}/status", {"status": status})
        yield found
        await server.stop()
        await admin.delete(NODE)


async def test_logs(kubelet: Kubelet, namespace: str) -> None:
    made = await kubelet.pod(namespace, "web", {"containerStatuses": [running()]})
    old = time.time() - 3600
    lines = [record(f"line {number}", at=old) for number in range(5)]
    lines += [record("half, ", "stderr", "P"), record("whole", "stderr"), record("last")]
    append(kubelet.log(made), b"".join(lines))
    done = await kubelet.kubectl("logs", "-n", namespace, "web")
    assert done.stdout == "line 0\nline 1\nline 2\nline 3\nline 4\nhalf, whole\nlast\n", done
    assert (await kubelet.kubectl("logs", "-n", namespace, "web", "--tail=2")).stdout == "whole\nlast\n"
    assert (await kubelet.kubectl("logs", "-n", namespace, "web", "--since=1m")).stdout == "half, whole\nlast\n"
    assert (await kubelet.kubectl("logs", "-n", namespace, "web", "--limit-bytes=9")).stdout == "line 0\nli"
    stamped = (await kubelet.kubectl("logs", "-n", namespace, "web", "--timestamps", "--tail=3")).stdout.splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == ["half, whole", "last"]
    assert stamped[0].startswith("20")
    assert (await kubelet.kubectl("logs", "-n", namespace, "web", "--tail=0")).stdout == ""


async def test_a_huge_log_and_a_long_line(kubelet: Kubelet, namespace: str) -> None:
    made = await kubelet.pod(namespace, "web", {"containerStatuses": [running()]})
    path = kubelet.log(made)
    block = b"".join(record("x" * 100) for _ in range(10_000))
    with open(path, "wb") as file:
        for _ in range(20):
            file.write(block)
        file.write(record("y" * 10_000_000))
        file.write(record("end"))
    assert (await kubelet.kubectl("logs", "-n", namespace, "web", "--tail=1")).stdout == "end\n"
    done = await kubelet.kubectl("logs", "-n", namespace, "web")
    assert len(done.stdout) == 200_000 * 101 + 10_000_001 + 4


async def follow(kubelet: Kubelet, namespace: str, *more: str) -> asyncio.subprocess.Process:
    argv = [os.path.join(BINARIES, "kubectl"), f"--kubeconfig={kubelet.apiserver.admin}", "logs", "-f", "-n", namespace, "web", *more]
    return await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)


async def line(process: asyncio.subprocess.Process, seconds: float = 5) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), seconds)).decode()


async def test_follow_through_rotation_until_the_end(kubelet: Kubelet, namespace: str) -> None:
    made = await kubelet.pod(namespace, "web", {"containerStatuses": [running()]})
    path = kubelet.log(made)
    append(path, record("one"))
    process = await follow(kubelet, namespace)
    assert await line(process) == "one\n"
    append(path, record("two"))
    assert await line(process) == "two\n"
    append(path, record("three"))
    os.rename(path, f"{path}.20260101-000000")
    append(path, record("four"))
    os.rename(path, f"{path}.20260101-000000.001")
    append(path, record("five"))
    assert [await line(process) for _ in range(3)] == ["three\n", "four\n", "five\n"]
    append(path, record("six"))
    kubelet.set_state(made, {"terminated": {"exitCode": 0, "containerID": "hpk://u/main/0"}})
    assert await line(process) == "six\n"
    assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_follow_starts_before_the_first_line(kubelet: Kubelet, namespace: str) -> None:
    made = await kubelet.pod(namespace, "web", {"containerStatuses": [running()]})
    process = await follow(kubelet, namespace)
    await asyncio.sleep(0.5)
    append(kubelet.log(made), record("late"))
    assert await line(process) == "late\n"
    kubelet.pods.clear()  # the Pod is gone
    assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_client_that_leaves_frees_everything(kubelet: Kubelet, namespace: str) -> None:
    made = await kubelet.pod(namespace, "web", {"containerStatuses": [running()]})
    append(kubelet.log(made), record("one"))

    def logs_open() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(1 for link in links if os.path.islink(link) and os.readlink(link).endswith("/0.log"))

    processes = [await follow(kubelet, namespace) for _ in range(3)]
    for process in processes:
        assert await line(process) == "one\n"
    assert logs_open() == 3
    for process in processes:
        process.kill()
        await process.wait()
    await until(lambda: logs_open() == 0)


async def test_previous_waiting_and_missing(kubelet: Kubelet, namespace: str) -> None:
    ended = {"terminated": {"exitCode": 1, "containerID": "hpk://u/main/0"}}
    waiting = running(restart=1, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended)
    made = await kubelet.pod(namespace, "web", {"containerStatuses": [waiting]})
    append(kubelet.log(made, restart=0), record("before the crash"))
    assert (await kubelet.kubectl("logs", "-n", namespace, "web", "--previous")).stdout == "before the crash\n"
    assert (await kubelet.kubectl("logs", "-n", namespace, "web")).stdout == "before the crash\n"
    kubelet.pods.clear()
    creating = running(state={"waiting": {"reason": "ContainerCreating"}}, containerID="")
    await kubelet.pod(namespace, "new", {"containerStatuses": [creating], "phase": "Pending"})
    done = await kubelet.kubectl("logs", "-n", namespace, "new")
    assert done.returncode == 1
    assert done.stderr.strip() == ('Error from server (BadRequest): container "main" in pod "new" is waiting to start: ContainerCreating')
    done = await kubelet.kubectl("logs", "-n", namespace, "new", "--previous")
    assert 'previous terminated container "main" in pod "new" not found' in done.stderr


async def _ask(kubelet: Kubelet, path: str, **how: Any) -> tuple[int, str]:
    import ssl

    context = ssl.create_default_context(cafile=kubelet.apiserver.authority.certificate)
    if certificate := how.pop("certificate", None):
        context.load_cert_chain(*certificate)
    async with aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{kubelet.port}{path}"
        async with session.get(url, ssl=context, **how) as answer:
            return answer.status, await answer.text()


async def test_authentication_and_authorization(kubelet: Kubelet, namespace: str) -> None:
    assert await _ask(kubelet, "/pods") == (401, "Unauthorized")
    assert (await _ask(kubelet, "/healthz"))[0] == 401
    assert (await _ask(kubelet, "/pods", headers={"Authorization": "Bearer nonsense"}))[0] == 401
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await kubelet.client.create(account, body))["status"]["token"]
    bearer = {"headers": {"Authorization": f"Bearer {token}"}}
    status, text = await _ask(kubelet, "/pods", **bearer)
    assert status == 403
    user = f"system:serviceaccount:{namespace}:default"
    assert text == f"Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[pods proxy])"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"metrics-{namespace}"},
        "rules": [{"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]}],
    }
    await kubelet.client.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"metrics-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"metrics-{namespace}"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    await kubelet.client.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)

    async def metrics() -> bool:
        return (await _ask(kubelet, "/metrics", **bearer))[0] == 200

    await until(metrics)
    assert (await _ask(kubelet, "/containerLogs/a/b/c", **bearer))[0] == 403
    stranger = kubelet.apiserver.authority.issue("stranger", "mallory")
    assert (await _ask(kubelet, "/containerLogs/a/b/c", certificate=stranger))[0] == 403
    assert (await _ask(kubelet, "/pods", certificate=kubelet.apiserver.authority.issue("root", "root", "system:masters")))[0] == 200


async def test_a_certificate_of_another_ca_is_refused(kubelet: Kubelet, tmp_path: Any) -> None:
    from tests.component.conftest import Authority

    foreign = Authority(os.fspath(tmp_path / "foreign")).issue("root", "root", "system:masters")
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await _ask(kubelet, "/pods", certificate=foreign)


async def test_upstreams_words(kubelet: Kubelet, namespace: str) -> None:
    admin = kubelet.apiserver.authority.issue("root", "root", "system:masters")
    await kubelet.pod(namespace, "web", {"containerStatuses": [running()]})

    async def ask(path: str) -> tuple[int, str]:
        return await _ask(kubelet, path, certificate=admin)

    assert await ask("/containerLogs/x/nosuch/main") == (404, 'pod "nosuch" does not exist')
    assert await ask(f"/containerLogs/{namespace}/web/nosuch") == (404, 'container "nosuch" not found in pod "web"')
    assert await ask(f"/containerLogs/{namespace}/web/main?tailLines=x") == (400, '{"message": "Unable to decode query."}')
    assert await ask(f"/containerLogs/{namespace}/web/main?limitBytes=0") == (422, '{"message": "Invalid request."}')
    assert await ask(f"/containerLogs/{namespace}/web/main?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z") == (
        422,
        '{"message": "Invalid request."}',
    )
    assert (await ask("/exec/a/b/c"))[0] == 501
    assert (await ask("/nosuch"))[0] == 404
    assert await ask("/healthz") == (200, "ok")
    status, text = await ask("/runningpods/")
    assert status == 200
    assert '"name": "web"' in text
    status, text = await ask("/metrics")
    assert 'kubelet_node_name{node="hpk"} 1' in text
    assert "kubelet_running_pods 1" in text
