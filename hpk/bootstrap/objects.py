"""The API objects that the cluster has from the start (manifests/cluster.yaml)."""

from __future__ import annotations

import importlib.resources
import ipaddress
import string
from typing import Any

import yaml

from hpk import records
from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors

#: Where each kind lives: (API path, namespaced).
_PLURALS = {
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Service": "/api/v1/namespaces/{namespace}/services",
}


def dns_service_ip(service_cidr: str) -> str:
    """Address of Service kube-dns: the tenth of the range, as kubeadm has it."""
    return str(ipaddress.ip_network(service_cidr)[10])


def build(service_cidr: str) -> list[dict[str, Any]]:
    """Return the objects."""
    text = importlib.resources.files("hpk.bootstrap").joinpath("manifests/cluster.yaml").read_text(encoding="utf-8")
    text = string.Template(text).substitute(dns_service_ip=dns_service_ip(service_cidr))
    return [item for item in yaml.safe_load_all(text) if item]


def path(item: dict[str, Any]) -> str:
    """Return the API path of an object."""
    metadata = item["metadata"]
    return f"{_PLURALS[item['kind']].format(namespace=metadata.get('namespace'))}/{metadata['name']}"


async def apply(client: kube_client.Client, service_cidr: str) -> None:
    """Create or update them all. Raises APIError."""
    for item in build(service_cidr):
        await client.patch(path(item), item, kind="apply", fieldManager="hpk", force="true")


async def release_lease(client: kube_client.Client, since: float) -> None:
    """Free the scheduler's Lease when it was last renewed before ``since`` (seconds since the epoch, the start of this run).

    Its holder belongs to a former control plane that died with its node; the new scheduler would wait for the Lease to run out
    although the lock on the state directory says already that there is no other. Raises APIError.
    """
    path = kube_client.path("coordination.k8s.io/v1", "leases", "kube-system", "kube-scheduler")
    try:
        lease = await client.get(path)
    except kube_errors.NotFound:
        return
    spec = lease.get("spec") or {}
    if spec.get("holderIdentity") and (spec.get("renewTime") or "") < records.now(since):
        try:
            await client.replace(path, {**lease, "spec": {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}})
        except kube_errors.Conflict:
            pass  # the new scheduler was quicker
