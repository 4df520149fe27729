"""The parts of HPK itself: they run on the node, not in the image, since they need Slurm's commands.

Both show that they work by what they write to the API server, so that is what their readiness asks for.
"""

from __future__ import annotations

import time
from typing import Any

from hpk.bootstrap import component


def node_ready(node: dict[str, Any], since: float) -> bool:
    """Tell whether a Node is Ready by a report of its kubelet that is not older than ``since``, in seconds since the epoch.

    A Node object outlives its kubelet, and says Ready until the node lifecycle controller doubts it.
    """
    oldest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
    conditions = node.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" and (c.get("lastHeartbeatTime") or "") >= oldest for c in conditions)


def lease_held(lease: dict[str, Any], since: float) -> bool:
    """Tell whether a Lease was renewed after ``since`` by somebody who holds it."""
    spec = lease.get("spec", {})
    oldest = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(since))
    return bool(spec.get("holderIdentity")) and (spec.get("renewTime") or "") >= oldest


def _from_api(run: component.Run, path: str, accept: Any) -> component.Check:
    return component.Check(run.api_server + path, run.pki("ca.crt"), run.pki("admin.crt"), run.pki("admin.key"), accept)


def scheduler(run: component.Run) -> component.Component:
    return component.Component(
        name="scheduler",
        summary="scheduler",
        argv=(run.python, "-m", "hpk", "scheduler"),
        links=("kube-apiserver",),
        ready=_from_api(run, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler", lease_held),
        stop_timeout=5.0,
        certificates=("scheduler",),
    )


def kubelet(run: component.Run) -> component.Component:
    return component.Component(
        name="kubelet",
        summary="kubelet",
        argv=(run.python, "-m", "hpk", "kubelet"),
        links=("kube-apiserver",),
        ready=_from_api(run, f"/api/v1/nodes/{run.config.cluster.node_name}", node_ready),
        stop_timeout=10.0,
        certificates=("kubelet", "kubelet-client"),
    )
