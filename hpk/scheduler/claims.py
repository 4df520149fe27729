"""PersistentVolumeClaims of a Pod: are they ready for it to be bound? The words are those of kube-scheduler's VolumeBinding plugin.

A claim whose StorageClass waits for its first consumer gets the chosen node's name in an annotation; the provisioner then makes
the volume, and the Pod is bound when the claim is.
"""

from __future__ import annotations

from typing import Any

from hpk.kube import client as kube_client
from hpk.kube import errors
from hpk.kube.store import Store

Object = dict[str, Any]

SELECTED_NODE = "volume.kubernetes.io/selected-node"
_BIND_COMPLETED = "pv.kubernetes.io/bind-completed"


def names(pod: Object) -> list[tuple[str, bool]]:
    """Return (claim, is it an ephemeral volume's) for each volume that has one."""
    found = []
    for volume in pod["spec"].get("volumes") or []:
        if claim := volume.get("persistentVolumeClaim"):
            found.append((claim["claimName"], False))
        elif volume.get("ephemeral") is not None:
            found.append((f"{pod['metadata']['name']}-{volume['name']}", True))
    return found


def trim(claim: Object) -> Object:
    """What this module needs of a claim."""
    metadata = claim["metadata"]
    return {
        "metadata": {
            key: metadata[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "annotations", "deletionTimestamp", "ownerReferences")
            if key in metadata
        },
        "spec": {key: claim["spec"][key] for key in ("volumeName", "storageClassName") if key in claim["spec"]},
        "status": {"phase": (claim.get("status") or {}).get("phase", "Pending")},
    }


def is_bound(claim: Object) -> bool:
    """As upstream's volume.IsPVCFullyBound."""
    return bool(claim["spec"].get("volumeName")) and _BIND_COMPLETED in (claim["metadata"].get("annotations") or {})


def problem(pod: Object, store: Store) -> str | None:
    """What makes the Pod unschedulable whatever the node; None when nothing does."""
    namespace = pod["metadata"]["namespace"]
    for name, ephemeral in names(pod):
        claim = store.get(namespace, name)
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
    return None


def unbound(pod: Object, store: Store) -> list[Object]:
    found = [store.get(pod["metadata"]["namespace"], name) for name, _ in names(pod)]
    return [claim for claim in found if claim is not None and not is_bound(claim)]


async def waits_for_consumer(client: kube_client.Client, claim: Object) -> bool:
    """Tell whether the claim's StorageClass has volumeBindingMode WaitForFirstConsumer. Raises APIError."""
    name = claim["spec"].get("storageClassName")
    if not name:
        return False
    try:
        found = await client.get(kube_client.path("storage.k8s.io/v1", "storageclasses", name=name))
    except errors.NotFound:
        return False
    return bool(found.get("volumeBindingMode") == "WaitForFirstConsumer")


async def select_node(client: kube_client.Client, claim: Object, node: str) -> None:
    """Tell the provisioner where the claim's first consumer will run. Raises APIError."""
    metadata = claim["metadata"]
    if (metadata.get("annotations") or {}).get(SELECTED_NODE) == node:
        return
    path = kube_client.path("v1", "persistentvolumeclaims", metadata["namespace"], metadata["name"])
    await client.patch(path, {"metadata": {"uid": metadata["uid"], "annotations": {SELECTED_NODE: node}}})
