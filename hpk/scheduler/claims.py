"""PersistentVolumeClaims of a Pod: is it ready to be bound, and to which node? Words and rules are kube-scheduler's (VolumeBinding).

A claim is bound already (its volume may be tied to some nodes), or its StorageClass waits for the first consumer: then a free
volume that fits is given to it, or the chosen node's name is written into the claim, for the provisioner. The Pod follows when
its claims are bound, which is kube-controller-manager's work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from hpk.kube import quantity
from hpk.kube.store import Store
from hpk.scheduler import filters

Object = dict[str, Any]

SELECTED_NODE = "volume.kubernetes.io/selected-node"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
_BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
_NO_PROVISIONER = ("", "kubernetes.io/no-provisioner")

IMMEDIATE = "pod has unbound immediate PersistentVolumeClaims"
NODE_CONFLICT = "node(s) didn't match PersistentVolume's node affinity"
NO_VOLUME = "node(s) didn't find available persistent volumes to bind"
LOST_VOLUME = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"

_METADATA = ("name", "namespace", "uid", "resourceVersion", "labels", "annotations", "deletionTimestamp", "ownerReferences")
_VOLUME_SPEC = ("capacity", "accessModes", "storageClassName", "volumeMode", "claimRef", "nodeAffinity", "volumeAttributesClassName")


@dataclasses.dataclass(frozen=True)
class Stores:
    """What is known of claims, volumes and classes."""

    claims: Store
    volumes: Store
    classes: Store

    def of(self, pod: Object) -> list[Object]:
        """The Pod's claims that exist."""
        found = [self.claims.get(pod["metadata"]["namespace"], name) for name, _ in names(pod)]
        return [claim for claim in found if claim is not None]


@dataclasses.dataclass(frozen=True)
class Work:
    """What must be done before the Pod can be bound: volumes given to claims, claims told the node."""

    give: tuple[tuple[Object, Object], ...] = ()
    provision: tuple[Object, ...] = ()


def _pick(values: Mapping[str, Any], keys: Iterable[str]) -> Object:
    return {key: values[key] for key in keys if key in values}


def trim_claim(claim: Object) -> Object:
    phase = (claim.get("status") or {}).get("phase", "Pending")
    return {"metadata": _pick(claim["metadata"], _METADATA), "spec": claim["spec"], "status": {"phase": phase}}


def trim_volume(volume: Object) -> Object:
    phase = (volume.get("status") or {}).get("phase", "Pending")
    return {"metadata": _pick(volume["metadata"], _METADATA), "spec": _pick(volume["spec"], _VOLUME_SPEC), "status": {"phase": phase}}


def trim_class(found: Object) -> Object:
    return {"metadata": _pick(found["metadata"], _METADATA), **_pick(found, ("provisioner", "volumeBindingMode"))}


def names(pod: Object) -> list[tuple[str, bool]]:
    """Return (claim, is it an ephemeral volume's) for each volume that has one."""
    found = []
    for volume in pod["spec"].get("volumes") or []:
        if claim := volume.get("persistentVolumeClaim"):
            found.append((claim["claimName"], False))
        elif volume.get("ephemeral") is not None:
            found.append((f"{pod['metadata']['name']}-{volume['name']}", True))
    return found


def is_bound(claim: Object) -> bool:
    """As upstream's volume.IsPVCFullyBound."""
    return bool(claim["spec"].get("volumeName")) and _BIND_COMPLETED in (claim["metadata"].get("annotations") or {})


def problem(pod: Object, stores: Stores) -> str | None:
    """What makes the Pod unschedulable whatever the node; None when nothing does."""
    namespace = pod["metadata"]["namespace"]
    for name, ephemeral in names(pod):
        claim = stores.claims.get(namespace, name)
        if claim is None:
            if ephemeral:
                return f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{name}"'
            return f'persistentvolumeclaim "{name}" not found'
        if claim["status"]["phase"] == "Lost":
            return f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{claim["spec"].get("volumeName", "")}"'
        if claim["metadata"].get("deletionTimestamp"):
            return f'persistentvolumeclaim "{name}" is being deleted'
        owners = [owner.get("uid") for owner in claim["metadata"].get("ownerReferences") or [] if owner.get("controller")]
        if ephemeral and pod["metadata"]["uid"] not in owners:
            return f"PVC {namespace}/{name} was not created for pod {namespace}/{pod['metadata']['name']} (pod is not owner)"
    waiting = [claim for claim in stores.of(pod) if not is_bound(claim)]
    return None if all(_waits_for_consumer(claim, stores) for claim in waiting) else IMMEDIATE


def _class(claim: Object, stores: Stores) -> Object | None:
    name = claim["spec"].get("storageClassName")
    return stores.classes.get("", name) if name else None


def _waits_for_consumer(claim: Object, stores: Stores) -> bool:
    if claim["spec"].get("volumeName"):
        return False  # the controller has chosen and is about to finish
    found = _class(claim, stores)
    return found is not None and found.get("volumeBindingMode") == "WaitForFirstConsumer"


def _reachable(volume: Object, node: Object) -> bool:
    required = (volume["spec"].get("nodeAffinity") or {}).get("required")
    return required is None or filters.selects(required, node)


def _size(spec: Mapping[str, Any], *path: str) -> Fraction:
    value: Any = spec
    for key in path:
        value = (value or {}).get(key)
    return quantity.parse(value or "0")


def _selected(selector: Object | None, labels: dict[str, str]) -> bool:
    """metav1.LabelSelector against labels; the operators are those of a node selector."""
    if not selector:
        return True
    wanted = [{"key": key, "operator": "In", "values": [value]} for key, value in (selector.get("matchLabels") or {}).items()]
    return all(filters.matches(expression, labels) for expression in [*wanted, *(selector.get("matchExpressions") or [])])


def _fits(claim: Object, volume: Object) -> bool:
    """Size, mode, class, access and selector; the node is looked at elsewhere."""
    wanted, offered = claim["spec"], volume["spec"]
    return (
        not volume["metadata"].get("deletionTimestamp")
        and _size(offered, "capacity", "storage") >= _size(wanted, "resources", "requests", "storage")
        and (wanted.get("volumeMode") or "Filesystem") == (offered.get("volumeMode") or "Filesystem")
        and (wanted.get("storageClassName") or "") == (offered.get("storageClassName") or "")
        and (wanted.get("volumeAttributesClassName") or "") == (offered.get("volumeAttributesClassName") or "")
        and set(wanted.get("accessModes") or ()) <= set(offered.get("accessModes") or ())
        and _selected(wanted.get("selector"), volume["metadata"].get("labels") or {})
    )


def _is_for(volume: Object, claim: Object) -> bool:
    reference = volume["spec"].get("claimRef") or {}
    same = (reference.get("namespace"), reference.get("name")) == (claim["metadata"]["namespace"], claim["metadata"]["name"])
    return same and reference.get("uid") in (None, "", claim["metadata"]["uid"])


def _match(claim: Object, stores: Stores, node: Object, taken: set[str]) -> Object | None:
    """The volume reserved for the claim, else the smallest free one that fits (upstream's FindMatchingVolume)."""
    volumes = stores.volumes.list()
    for volume in volumes:
        if _is_for(volume, claim):
            return volume if _reachable(volume, node) else None
    free = [
        volume
        for volume in volumes
        if not volume["spec"].get("claimRef")
        and volume["status"]["phase"] == "Available"
        and volume["metadata"]["name"] not in taken
        and _fits(claim, volume)
        and _reachable(volume, node)
    ]
    return min(free, key=lambda volume: (_size(volume["spec"], "capacity", "storage"), volume["metadata"]["name"]), default=None)


def on_node(pod: Object, stores: Stores, node: Object) -> Work | str:
    """What to do so that the Pod's claims can be used on ``node``, or why they cannot."""
    give: list[tuple[Object, Object]] = []
    provision: list[Object] = []
    taken: set[str] = set()
    for claim in sorted(stores.of(pod), key=lambda claim: _size(claim["spec"], "resources", "requests", "storage")):
        if is_bound(claim):
            volume = stores.volumes.get("", claim["spec"]["volumeName"])
            if volume is None:
                return LOST_VOLUME
            if not _reachable(volume, node):
                return NODE_CONFLICT
        elif SELECTED_NODE in (claim["metadata"].get("annotations") or {}):
            provision.append(claim)  # under way
        elif (volume := _match(claim, stores, node, taken)) is not None:
            taken.add(volume["metadata"]["name"])
            give.append((volume, claim))
        elif ((_class(claim, stores) or {}).get("provisioner") or "") in _NO_PROVISIONER:
            return NO_VOLUME
        else:
            provision.append(claim)
    return Work(tuple(give), tuple(provision))


def gift(volume: Object, claim: Object) -> Object:
    """The merge patch that gives ``volume`` to ``claim``. Fails with Conflict when the volume changed meanwhile."""
    metadata = claim["metadata"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **_pick(metadata, ("namespace", "name", "uid", "resourceVersion"))}
    body: Object = {"metadata": {"resourceVersion": volume["metadata"]["resourceVersion"]}, "spec": {"claimRef": reference}}
    if not volume["spec"].get("claimRef"):
        body["metadata"]["annotations"] = {BOUND_BY_CONTROLLER: "yes"}
    return body
