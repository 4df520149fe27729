"""Claims of a Pod: what keeps it from a node, and what must be done first."""

from __future__ import annotations

from typing import Any

import pytest

from hpk.kube.store import Store
from hpk.scheduler import claims

Object = dict[str, Any]
NODE = {"metadata": {"name": "hpk", "labels": {"kubernetes.io/hostname": "hpk"}}, "spec": {}}
BOUND = {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}


def stores(*objects: Object) -> claims.Stores:
    found = claims.Stores(Store(), Store(), Store())
    kinds = {"PersistentVolumeClaim": found.claims, "PersistentVolume": found.volumes, "StorageClass": found.classes}
    for obj in objects:
        kinds[obj["kind"]].put(obj)
    return found


def pod(*names: str) -> Object:
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names]
    return {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"volumes": volumes}}


def claim(name: str = "data", *, phase: str = "Pending", metadata: Object | None = None, size: str = "1Gi", **spec: Any) -> Object:
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "n", "uid": f"uid-{name}", "resourceVersion": "7", **(metadata or {})},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec},
        "status": {"phase": phase},
    }


def volume(
    name: str, size: str = "2Gi", *, phase: str = "Available", metadata: Object | None = None, host: str = "hpk", **spec: Any
) -> Object:
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}
    return {
        "kind": "PersistentVolume",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "3", **(metadata or {})},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "storageClassName": "late",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
            **spec,
        },
        "status": {"phase": phase},
    }


def storage_class(provisioner: str = "kubernetes.io/no-provisioner", mode: str = "WaitForFirstConsumer") -> Object:
    return {"kind": "StorageClass", "metadata": {"name": "late"}, "provisioner": provisioner, "volumeBindingMode": mode}


def test_problems() -> None:
    wanted = pod("data")
    wanted["spec"]["volumes"].insert(0, {"name": "v", "ephemeral": {}})
    assert claims.names(wanted) == [("p-v", True), ("data", False)]
    assert claims.problem(wanted, stores()) == 'waiting for ephemeral volume controller to create the persistentvolumeclaim "p-v"'
    assert "was not created for pod n/p (pod is not owner)" in (claims.problem(wanted, stores(claim("p-v"))) or "")
    owned = claim("p-v", metadata={**BOUND, "ownerReferences": [{"uid": "u", "controller": True}]}, volumeName="x")
    assert claims.problem(wanted, stores(owned)) == 'persistentvolumeclaim "data" not found'
    deleted = claim(metadata={"deletionTimestamp": "now"})
    assert claims.problem(wanted, stores(owned, deleted)) == 'persistentvolumeclaim "data" is being deleted'
    lost = claim(phase="Lost", volumeName="pv1")
    message = 'persistentvolumeclaim "data" bound to non-existent persistentvolume "pv1"'
    assert claims.problem(wanted, stores(owned, lost)) == message
    assert claims.problem(wanted, stores(owned, claim(metadata=BOUND, volumeName="pv1"))) is None


def test_unbound_claims_wait_for_their_class() -> None:
    assert claims.problem(pod("data"), stores(claim())) == claims.IMMEDIATE
    assert claims.problem(pod("data"), stores(claim(), storage_class(mode="Immediate"))) == claims.IMMEDIATE
    assert claims.problem(pod("data"), stores(claim(), storage_class())) is None
    half = claim(volumeName="pv1")  # chosen, not completed: the controller's turn
    assert claims.problem(pod("data"), stores(half, storage_class())) == claims.IMMEDIATE


def test_bound_claims_tie_to_their_volumes_nodes() -> None:
    bound = claim(metadata=BOUND, volumeName="pv1")
    assert claims.on_node(pod("data"), stores(bound), NODE) == claims.LOST_VOLUME
    assert claims.on_node(pod("data"), stores(bound, volume("pv1", host="c1")), NODE) == claims.NODE_CONFLICT
    assert claims.on_node(pod("data"), stores(bound, volume("pv1")), NODE) == claims.Work()


def test_the_smallest_free_volume_that_fits_is_given() -> None:
    volumes = [
        volume("small", "500Mi"),
        volume("big", "3Gi"),
        volume("right", "2Gi"),
        volume("elsewhere", "1Gi", host="c1"),
        volume("taken", "1Gi", claimRef={"namespace": "n", "name": "other"}),
        volume("released", "1Gi", phase="Released"),
        volume("block", "1Gi", volumeMode="Block"),
        volume("other-class", "1Gi", storageClassName="fast"),
        volume("read-only", "1Gi", accessModes=["ReadOnlyMany"]),
        volume("leaving", "1Gi", metadata={"deletionTimestamp": "now"}),
    ]
    work = claims.on_node(pod("data"), stores(claim(), storage_class(), *volumes), NODE)
    assert isinstance(work, claims.Work)
    ((given, to),) = work.give
    assert given["metadata"]["name"] == "right"
    assert claims.gift(given, to) == {
        "metadata": {"resourceVersion": "3", "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
        "spec": {
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": "n",
                "name": "data",
                "uid": "uid-data",
                "resourceVersion": "7",
            }
        },
    }


def test_two_claims_get_two_volumes() -> None:
    known = stores(claim("a", size="2Gi"), claim("b"), storage_class(), volume("one"), volume("two", "5Gi"))
    work = claims.on_node(pod("a", "b"), known, NODE)
    assert isinstance(work, claims.Work)
    assert [(v["metadata"]["name"], c["metadata"]["name"]) for v, c in work.give] == [("one", "b"), ("two", "a")]
    known.volumes.delete(volume("two"))
    assert claims.on_node(pod("a", "b"), known, NODE) == claims.NO_VOLUME


@pytest.mark.parametrize(("labels", "fits"), [({"disk": "ssd", "rack": "1"}, True), ({"disk": "ssd"}, False), ({"rack": "1"}, False)])
def test_selector(labels: dict[str, str], fits: bool) -> None:
    selector = {"matchLabels": {"disk": "ssd"}, "matchExpressions": [{"key": "rack", "operator": "Exists"}]}
    known = stores(claim(selector=selector), storage_class(), volume("v", metadata={"labels": labels}))
    assert (claims.on_node(pod("data"), known, NODE) == claims.NO_VOLUME) is not fits


def test_a_volume_reserved_for_the_claim_comes_first() -> None:
    reserved = volume("reserved", "9Gi", claimRef={"namespace": "n", "name": "data"})
    work = claims.on_node(pod("data"), stores(claim(), storage_class(), volume("free"), reserved), NODE)
    assert isinstance(work, claims.Work)
    assert work.give[0][0] is reserved
    assert "annotations" not in claims.gift(*work.give[0])["metadata"]


def test_a_provisioner_is_told_the_node() -> None:
    known = stores(claim(), storage_class("hpk.io/home"))
    work = claims.on_node(pod("data"), known, NODE)
    assert isinstance(work, claims.Work)
    assert [c["metadata"]["name"] for c in work.provision] == ["data"]


def test_trimmed_objects_decide_the_same() -> None:
    whole = claim(selector={"matchLabels": {"a": "b"}})
    whole["status"]["capacity"] = {"storage": "1Gi"}
    offered = volume("v", metadata={"labels": {"a": "b"}, "managedFields": [1]}, hostPath={"path": "/x"})
    small = stores(claims.trim_claim(whole) | {"kind": "PersistentVolumeClaim"}, claims.trim_volume(offered) | {"kind": "PersistentVolume"})
    small.classes.put(claims.trim_class(storage_class()))
    assert claims.problem(pod("data"), small) is None
    work = claims.on_node(pod("data"), small, NODE)
    assert isinstance(work, claims.Work)
    assert len(work.give) == 1
    assert "hostPath" not in small.volumes.list()[0]["spec"]
    assert "managedFields" not in small.volumes.list()[0]["metadata"]
