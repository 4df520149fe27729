"""Volumes as a node handles them: what changes reaches running Pods whole, what is too large evicts, what leads outside is refused."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, pod, terminated

pytestmark = pytest.mark.e2e

RUN = secrets.token_hex(2)
Object = dict[str, Any]


@pytest.fixture
def name(alice: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a Pod, a ConfigMap and a Secret that are removed afterwards."""
    found = f"v-{request.node.name.partition('[')[0][5:40].replace('_', '-').strip('-')}-{RUN}"
    yield found
    alice.delete(f"pod/{found}", f"configmap/{found}", f"secret/{found}", "--force", "--grace-period=0")


def config_map(name: str, **more: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **more}


def secret(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def mount(name: str, path: str, **more: Any) -> Object:
    return {"name": name, "mountPath": path, **more}


#: Prints "<a> <b> <secret> <label>" when it changes, and TORN when files of one volume are not of one time.
WATCH = """
last=
while :; do
  if cd /cfg/..data && a=$(cat a) && b=$(cat b); then [ "$a" = "$b" ] || echo TORN "$a" "$b"; fi 2>/dev/null
  now="$(cat /cfg/a) $(cat /cfg/b) $(cat /sec/key) $(cat /info/label) $(cat /one)"
  [ "$now" = "$last" ] || echo "$now"
  last=$now
  cd /; sleep 0.05
done"""


def test_updates_reach_a_running_pod_whole(alice: Cluster, name: str) -> None:
    """Within upstream's sync period of one minute; a subPath keeps the old content, as upstream."""
    alice.apply(config_map(name, data={"a": "1", "b": "1"}), secret(name, key="s1"))
    info = {"downwardAPI": {"items": [{"path": "label", "fieldRef": {"fieldPath": "metadata.labels['colour']"}}]}}
    volumes = [
        {"name": "cfg", "configMap": {"name": name}},
        {"name": "sec", "secret": {"secretName": name}},
        {"name": "info", "projected": {"sources": [info]}},
    ]
    mounts = [mount("cfg", "/cfg"), mount("sec", "/sec"), mount("info", "/info"), mount("cfg", "/one", subPath="a")]
    metadata = {"labels": {"colour": "red"}}
    alice.apply(pod(name, "sh", "-c", WATCH, volumes=volumes, container={"volumeMounts": mounts}, metadata=metadata))
    alice.wait_phase(name, "Running")
    alice.wait(lambda: alice.logs(name).splitlines() == ["1 1 s1 red 1"], 10)
    for value in ("2", "3", "4"):
        alice.apply(config_map(name, data={"a": value, "b": value}))
    alice.apply(secret(name, key="s2"))
    alice.kubectl("label", "pod", name, "colour=blue", "--overwrite")
    alice.wait(lambda: alice.logs(name).splitlines()[-1] == "4 4 s2 blue 1", 75)
    assert "TORN" not in alice.logs(name)


def test_items_modes_optional_and_sub_paths(alice: Cluster, name: str) -> None:
    alice.apply(
        config_map(name, data={"a": "A", "b": "B"}, binaryData={"raw": base64.b64encode(b"\x00\xff").decode()}, immutable=True),
        secret(name, key="K", other="O"),
    )
    volumes = [
        {"name": "cfg", "configMap": {"name": name, "items": [{"key": "a", "path": "deep/er/x"}, {"key": "raw", "path": "raw"}]}},
        {
            "name": "sec",
            "secret": {
                "secretName": name,
                "defaultMode": 0o400,
                "items": [{"key": "key", "path": "k", "mode": 0o440}, {"key": "other", "path": "o"}],
            },
        },
        {"name": "none", "configMap": {"name": "no-such-map", "optional": True}},
        {"name": "nokey", "secret": {"secretName": name, "items": [{"key": "gone", "path": "x"}], "optional": True}},
        {"name": "all", "projected": {"defaultMode": 0o444, "sources": [{"configMap": {"name": name}}, {"secret": {"name": name}}]}},
        {"name": "work", "emptyDir": {}},
    ]
    mounts = [
        mount("cfg", "/cfg"),
        mount("sec", "/sec"),
        mount("none", "/none"),
        mount("nokey", "/nokey"),
        mount("all", "/all"),
        mount("cfg", "/etc/single", subPath="deep/er/x"),
        mount("work", "/mine", subPathExpr="of/$(POD_NAME)"),
        mount("work", "/work"),
    ]
    script = """
cat /cfg/deep/er/x; od -An -tx1 /cfg/raw; stat -Lc '%a %n' /sec/k /sec/o /all/a; ls /none /nokey | wc -l; ls /all | tr '\\n' ' '
cat /etc/single; echo
echo hi > /mine/file; find /work -type f; touch /cfg/no 2>&1 | grep -o 'Read-only file system'
"""
    env = [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    alice.apply(pod(name, "sh", "-c", script, volumes=volumes, container={"volumeMounts": mounts, "env": env}))
    alice.wait_phase(name, "Succeeded", "Failed")
    expected = f"""A 00 ff
440 /sec/k
400 /sec/o
444 /all/a
3
a b key other raw A
/work/of/{name}/file
Read-only file system"""
    # `ls` of two empty folders prints their names and an empty line between them
    assert alice.logs(name).strip().replace("\n\n", "\n") == expected


@pytest.mark.parametrize("medium", ["", "Memory"])
def test_a_volume_beyond_its_limit_evicts(alice: Cluster, name: str, medium: str) -> None:
    volumes = [{"name": "big", "emptyDir": {"sizeLimit": "8Mi", "medium": medium}}, {"name": "free", "emptyDir": {}}]
    mounts = {"volumeMounts": [mount("big", "/big"), mount("free", "/free")]}
    fill = "dd if=/dev/zero bs=1048576 count"  # this busybox knows no 20M
    script = f"{fill}=20 of=/free/x; {fill}=4 of=/big/x; sleep 14; {fill}=8 of=/big/y; sleep 1000"
    alice.apply(pod(name, "sh", "-c", script, volumes=volumes, container=mounts, restartPolicy="Always"))
    alice.wait_phase(name, "Running")
    time.sleep(12)
    assert alice.get("pod", name)["status"]["phase"] == "Running"  # within the limit: looked at, and left alone
    failed = alice.wait_phase(name, "Failed", timeout=40)
    message = 'Usage of EmptyDir volume "big" exceeds the limit "8Mi". '
    assert (failed["status"]["reason"], failed["status"]["message"]) == ("Evicted", message)
    condition = next(item for item in failed["status"]["conditions"] if item["type"] == "DisruptionTarget")
    assert (condition["status"], condition["reason"], condition["message"]) == ("True", "TerminationByKubelet", message)
    assert {"type": "Warning", "reason": "Evicted", "message": message} in alice.events(name)
    assert terminated(failed)["exitCode"] in (137, 143)


def test_a_link_planted_by_another_container_leads_nowhere(alice: Cluster, name: str) -> None:
    """The init container replaces the folder of the main container's subPath by a link to the user's own home."""
    volumes = [{"name": "work", "emptyDir": {}}]
    script = f"rm -rf /work/sub && ln -s {alice.home} /work/sub && ls -l /work"
    init = {"name": "evil", "image": "busybox", "command": ["sh", "-c", script], "volumeMounts": [mount("work", "/work")]}
    container = {"volumeMounts": [mount("work", "/sub", subPath="sub")]}
    alice.apply(pod(name, "ls", "-a", "/sub", volumes=volumes, container=container, initContainers=[init]))
    failed = alice.wait_phase(name, "Failed", "Succeeded")
    end = terminated(failed)
    assert (failed["status"]["phase"], end["exitCode"], end["reason"]) == ("Failed", 128, "StartError")
    assert 'failed to prepare subPath for volumeMount "work" of container "main"' in end["message"]
    assert ".hpk" not in alice.kubectl("logs", name, check=False)


@pytest.mark.parametrize("path", ["../up", "a/../../up"])
def test_sub_path_expressions_that_lead_outside(alice: Cluster, name: str, path: str) -> None:
    """What the API server cannot see: `..` that comes from a variable."""
    container = {"env": [{"name": "X", "value": path}], "volumeMounts": [mount("work", "/work", subPathExpr="$(X)")]}
    alice.apply(pod(name, "true", volumes=[{"name": "work", "emptyDir": {}}], container=container))

    def waits() -> Object | None:
        statuses = alice.get("pod", name)["status"].get("containerStatuses") or [{}]
        state = (statuses[0].get("state") or {}).get("waiting") or {}
        return state if state.get("reason") == "CreateContainerConfigError" else None

    assert "must not contain '..'" in alice.wait(waits, 20)["message"]
    assert not [job for job in alice.queue() if job["name"] == f"default/{name}"]


def test_links_inside_a_host_path_may_not_leave_it(alice: Cluster, name: str) -> None:
    alice.run(
        "bash",
        "-c",
        "mkdir -p ~/shared && ln -sfn / ~/shared/out && mkdir -p ~/shared/in && ln -sfn in ~/shared/alias && echo yes > ~/shared/in/f",
    )
    volumes = [{"name": "shared", "hostPath": {"path": f"{alice.home}/shared"}}]
    good = {"volumeMounts": [mount("shared", "/data", subPath="alias")]}
    alice.apply(pod(name, "cat", "/data/f", volumes=volumes, container=good))
    alice.wait_phase(name, "Succeeded")
    assert alice.logs(name) == "yes\n"
    alice.delete("pod", name)
    bad = {"volumeMounts": [mount("shared", "/data", subPath="out/etc")]}
    alice.apply(pod(name, "ls", "/data", volumes=volumes, container=bad))
    alice.wait(lambda: [event for event in alice.events(name) if "leaves the volume" in event["message"]], 30)
    assert alice.get("pod", name)["status"]["phase"] != "Succeeded"
