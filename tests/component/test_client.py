"""Client, Reflector, Recorder and Leases against a real API server, also one that goes away and comes back."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest

from hpk.kube import client as kube_client
from hpk.kube import errors, events, lease, watch
from hpk.kube.store import Store
from tests.component.conftest import APIServer, pod, until

pytestmark = pytest.mark.component


@pytest.fixture
async def client(apiserver: APIServer) -> AsyncIterator[kube_client.Client]:
    async with kube_client.Client.from_kubeconfig(apiserver.admin, user_agent="hpk-test") as found:
        yield found


def _config_map(namespace: str, name: str, **data: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def _maps(namespace: str, name: str | None = None) -> str:
    return kube_client.path("v1", "configmaps", namespace, name)


async def test_create_read_change_delete(client: kube_client.Client, namespace: str) -> None:
    made = await client.create(_maps(namespace), _config_map(namespace, "a", x="1"))
    with pytest.raises(errors.AlreadyExists):
        await client.create(_maps(namespace), _config_map(namespace, "a"))
    changed = await client.patch(_maps(namespace, "a"), {"data": {"y": "2"}})
    assert changed["data"] == {"x": "1", "y": "2"}
    with pytest.raises(errors.Conflict):
        await client.replace(_maps(namespace, "a"), {**made, "data": {"z": "3"}})
    assert (await client.patch(_maps(namespace, "a"), [{"op": "remove", "path": "/data/x"}], kind="json"))["data"] == {"y": "2"}
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"w": "4"}}
    assert (await client.patch(_maps(namespace, "a"), applied, kind="apply", fieldManager="t"))["data"] == {"y": "2", "w": "4"}
    await client.delete(_maps(namespace, "a"))
    with pytest.raises(errors.NotFound) as caught:
        await client.get(_maps(namespace, "a"))
    assert caught.value.message == 'configmaps "a" not found'


async def test_errors_have_the_servers_words(client: kube_client.Client, namespace: str) -> None:
    with pytest.raises(errors.Invalid, match="a lowercase RFC 1123 subdomain"):
        await client.create(_maps(namespace), _config_map(namespace, "A_B"))
    with pytest.raises(errors.BadRequest):
        await client.create(_maps(namespace), {"apiVersion": "v1", "kind": "Pod"})


async def test_list_in_pages(client: kube_client.Client, namespace: str) -> None:
    for number in range(7):
        await client.create(_maps(namespace), _config_map(namespace, f"m{number}"))
    pages = [page async for page in client.pages(_maps(namespace), limit=3)]
    assert [len(page["items"]) for page in pages] == [3, 3, 1]
    whole = await client.list(_maps(namespace), limit=2)
    assert len(whole["items"]) == 7
    assert "continue" not in whole["metadata"]


async def test_wrong_token_is_unauthorized(apiserver: APIServer) -> None:
    path = apiserver.kubeconfig("nobody", token="wrong")
    async with kube_client.Client.from_kubeconfig(path, user_agent="t") as stranger:
        with pytest.raises(errors.Unauthorized):
            await stranger.get("/api/v1/namespaces")


async def test_forbidden(apiserver: APIServer) -> None:
    async with kube_client.Client.from_kubeconfig(apiserver.kubeconfig("jane"), user_agent="t") as jane:
        with pytest.raises(errors.Forbidden, match='User "jane" cannot list resource "pods"'):
            await jane.list("/api/v1/pods")


async def test_reflector_follows(client: kube_client.Client, namespace: str) -> None:
    store = Store()
    seen: list[tuple[bool, bool]] = []
    await client.create(_maps(namespace), _config_map(namespace, "before"))
    task = asyncio.create_task(watch.Reflector(client, _maps(namespace), store).run())
    await asyncio.wait_for(store.synced(), 10)
    store.subscribe(lambda old, new: seen.append((old is not None, new is not None)))
    assert seen == [(False, True)]
    await client.create(_maps(namespace), _config_map(namespace, "later"))
    await client.patch(_maps(namespace, "later"), {"data": {"big": "x" * 900_000}})
    await client.delete(_maps(namespace, "before"))
    await until(lambda: store.get(namespace, "before") is None)
    assert seen[1:] == [(False, True), (True, True), (True, False)]
    later = store.get(namespace, "later")
    assert later is not None
    assert len(later["data"]["big"]) == 900_000
    assert "managedFields" not in later["metadata"]
    assert store.by_uid(later["metadata"]["uid"]) is later
    task.cancel()


async def test_reflector_survives_a_restart_of_the_server(apiserver: APIServer, client: kube_client.Client, namespace: str) -> None:
    """What was deleted during the outage of one reflector is told, too."""
    store = Store()
    gone: list[str] = []
    store.subscribe(lambda old, new: gone.append(old["metadata"]["name"]) if old and new is None else None)
    await client.create(_maps(namespace), _config_map(namespace, "doomed"))
    await client.create(_maps(namespace), _config_map(namespace, "stays"))
    task = asyncio.create_task(watch.Reflector(client, _maps(namespace), store).run())
    await until(lambda: store.get(namespace, "doomed"))
    apiserver.stop("kube-apiserver", 9)
    await asyncio.sleep(0.3)
    apiserver.start_apiserver(wait=False)
    await asyncio.to_thread(apiserver.wait_ready)
    await client.delete(_maps(namespace, "doomed"))
    await client.create(_maps(namespace), _config_map(namespace, "new"))
    await until(lambda: store.get(namespace, "new"), 20)
    await until(lambda: gone == ["doomed"], 5)
    assert store.get(namespace, "stays")
    task.cancel()


async def test_request_waits_for_a_restarting_server(apiserver: APIServer, client: kube_client.Client, namespace: str) -> None:
    apiserver.stop("kube-apiserver", 9)
    request = asyncio.create_task(client.get(kube_client.path("v1", "namespaces", name=namespace)))
    apiserver.start_apiserver(wait=False)
    await asyncio.to_thread(apiserver.wait_ready)
    try:
        assert (await request)["metadata"]["name"] == namespace
    except errors.Unreachable:
        # the machine was slow to start it: then the error must be this one, and the next request works
        assert (await client.get(kube_client.path("v1", "namespaces", name=namespace)))["metadata"]["name"] == namespace


async def test_gone_makes_a_new_list(client: kube_client.Client, namespace: str) -> None:
    store = Store()
    reflector = watch.Reflector(client, _maps(namespace), store)
    reflector._version = "1"  # long compacted, or at least unknown to the watch cache
    await client.create(_maps(namespace), _config_map(namespace, "a"))
    task = asyncio.create_task(reflector.run())
    await until(lambda: store.get(namespace, "a"))
    task.cancel()


async def test_kubeconfig_is_read_again_when_the_server_moved(apiserver: APIServer, namespace: str) -> None:
    path = os.path.join(apiserver.folder, "moved.kubeconfig")
    with open(apiserver.admin, encoding="ascii") as file:
        config = json.load(file)
    good = json.dumps(config)
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    with open(path, "w", encoding="ascii") as file:
        json.dump(config, file)
    async with kube_client.Client.from_kubeconfig(path, user_agent="t") as moved:
        request = asyncio.create_task(moved.get(kube_client.path("v1", "namespaces", name=namespace)))
        await asyncio.sleep(0.2)
        with open(path, "w", encoding="ascii") as file:
            file.write(good)
        assert (await asyncio.wait_for(request, 10))["metadata"]["name"] == namespace


async def test_events_are_counted(client: kube_client.Client, namespace: str) -> None:
    made = await client.create(kube_client.pods_path(namespace), pod(namespace, "p"))
    recorder = events.Recorder(client, "hpk-test", "host")
    for _ in range(3):
        recorder.event(made, "Warning", "Failing", "again", field_path="spec.containers{main}")
    recorder.event(made, "Normal", "Other", "once")
    await recorder.stop()
    found = (await client.list(kube_client.path("v1", "events", namespace)))["items"]
    counts = {item["reason"]: (item["count"], item["involvedObject"].get("fieldPath")) for item in found}
    assert counts == {"Failing": (3, "spec.containers{main}"), "Other": (1, None)}


async def test_one_leader_at_a_time(client: kube_client.Client) -> None:
    leading: list[str] = []

    async def lead(name: str) -> None:
        leading.append(name)
        await asyncio.Event().wait()

    leases = {name: lease.LeaderLease(client, "kube-system", "test-leader", holder=name, duration=3, retry=0.2) for name in "ab"}
    first = asyncio.create_task(leases["a"].run(lambda: lead("a")))
    await until(lambda: leading == ["a"])
    second = asyncio.create_task(leases["b"].run(lambda: lead("b")))
    await asyncio.sleep(4)  # longer than the lease: renewal keeps it
    assert leading == ["a"]
    first.cancel()
    await until(lambda: leading == ["a", "b"], 3)  # released, not expired
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


async def test_a_dead_holder_of_this_machine_is_succeeded_at_once(client: kube_client.Client) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    holder = f"{lease.identity().rsplit('_', 2)[0]}_{process.pid}_{lease._start_time(process.pid)}"
    dying = lease.LeaderLease(client, "kube-system", "test-dead", holder=holder, duration=60)
    assert await dying._try()
    heir = lease.LeaderLease(client, "kube-system", "test-dead", holder="heir", duration=60)
    assert not await heir._try()
    process.kill()
    await process.wait()
    assert await heir._try()
    assert not await dying._try()
