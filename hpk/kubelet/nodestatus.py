"""The virtual node as a Kubernetes object: pure functions of what Slurm has and what this machine is.

Words and reasons of the conditions are the kubelet's own (pkg/kubelet/nodestatus/setters.go). One is added, SlurmReachable: while
Slurm does not answer, nothing is known to be wrong with running Pods, so the node stays Ready (NotReady would have them evicted).
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from hpk import __version__
from hpk.kube import quantity

if TYPE_CHECKING:
    from hpk.slurm import commands

Object = dict[str, Any]

#: The Kubernetes release whose kubelet we stand in for, with our own version as a pre-release part: it must be a semantic version.
KUBELET_VERSION = f"v1.36.0-hpk{__version__}"
#: Free space on the state directory's file system below which Pods can no longer be started, in bytes.
MIN_FREE = 64 * 1024 * 1024

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts about the machine that the kubelet runs on; ``disk_total`` and ``disk_free`` in bytes, of the state directory's file system."""

    address: str
    kubelet_port: int
    disk_total: int
    disk_free: int
    kernel: str
    os_image: str
    machine_id: str
    boot_id: str
    runtime: str


@dataclasses.dataclass(frozen=True)
class Slurm:
    """What is known of Slurm: its capacity (None: never told yet) and, when it does not answer, since when (RFC 3339) and its words."""

    capacity: commands.Capacity | None
    silent_since: str = ""
    problem: str = ""


def architecture() -> str:
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def runtime_version(output: str) -> str:
    """``apptainer://1.4.5`` from what ``apptainer --version`` or ``singularity --version`` prints."""
    match = re.search(r"(apptainer|singularity)\S*(?: version)? v?([0-9][^\s]*)", output)
    return f"{match[1]}://{match[2]}" if match else "apptainer://unknown"


def labels(name: str) -> dict[str, str]:
    """Labels that the kubelet keeps; no others are touched. (A role label is out of a kubelet's rights: NodeRestriction.)"""
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": architecture(),
        "node.kubernetes.io/instance-type": "slurm",
        "type": "virtual-kubelet",
    }


def capacity(slurm: Slurm, machine: Machine, *, max_pods: int, resources: Mapping[str, str]) -> dict[str, str]:
    """Resource quantities of the node; {} while Slurm's are not known.

    ``resources`` is the site's table of extended resource names to gres names. Two names of one gres are both told: which of them
    is meant is the site's to say, in slurm.resources.
    """
    if slurm.capacity is None:
        return {}
    found = {
        "cpu": str(slurm.capacity.cpus),
        "memory": f"{slurm.capacity.memory_bytes // 1024}Ki",
        "pods": str(max_pods),
        "ephemeral-storage": f"{machine.disk_total // 1024}Ki",
    }
    for resource, gres in resources.items():
        count = slurm.capacity.gres.get(gres, 0)
        if count:
            found[resource] = str(count)
    return found


def _condition(kind: str, is_true: bool, reason: str, message: str) -> Object:
    return {"type": kind, "status": "True" if is_true else "False", "reason": reason, "message": message}


def conditions(slurm: Slurm, machine: Machine, known: Mapping[str, str]) -> list[Object]:
    """Conditions without times; Ready is the last one, as upstream has it. ``known`` is the capacity."""
    full = machine.disk_free < MIN_FREE
    found = [
        _condition("MemoryPressure", False, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        _condition("DiskPressure", True, "KubeletHasDiskPressure", "kubelet has disk pressure")
        if full
        else _condition("DiskPressure", False, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        _condition("PIDPressure", False, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        _condition("NetworkUnavailable", False, "HostNetwork", "Pods use the network of the compute nodes"),
    ]
    message = "kubelet is posting ready status"
    if slurm.silent_since:
        found.append(_condition("SlurmReachable", False, "SlurmNotAnswering", slurm.problem or "Slurm does not answer"))
        message += f"; Slurm has not answered since {slurm.silent_since}: running Pods go on, new ones wait"
    elif slurm.capacity is not None:
        nodes = f"{slurm.capacity.nodes} compute node{'' if slurm.capacity.nodes == 1 else 's'}"
        found.append(_condition("SlurmReachable", True, "SlurmAnswering", f"Slurm has {nodes}"))
    missing = [name for name in ("cpu", "memory", "pods", "ephemeral-storage") if name not in known]
    if missing:
        why = f"missing node capacity for resources: {', '.join(missing)}"
        found.append(_condition("Ready", False, "KubeletNotReady", f"{why} ({slurm.problem})" if slurm.problem else why))
    else:
        found.append(_condition("Ready", True, "KubeletReady", message))
    return found


def timed(new: list[Object], old: list[Object], now: str) -> list[Object]:
    """Give ``new`` conditions their times: the transition is that of the old one where the status is the same."""
    before = {condition["type"]: condition for condition in old}
    result = []
    for condition in new:
        last = before.get(condition["type"], {})
        same = last.get("status") == condition["status"]
        result.append({**condition, "lastHeartbeatTime": now, "lastTransitionTime": last.get("lastTransitionTime") or now if same else now})
    return result


def status(name: str, slurm: Slurm, machine: Machine, *, old: Object, max_pods: int, resources: Mapping[str, str]) -> Object:
    """The node's status without times. ``old`` is its last one: what Slurm said then stands until Slurm says something else."""
    known = capacity(slurm, machine, max_pods=max_pods, resources=resources) or dict(old.get("capacity") or {})
    return {
        "capacity": known,
        "allocatable": dict(known),
        "conditions": conditions(slurm, machine, known),
        "addresses": [{"type": "InternalIP", "address": machine.address}, {"type": "Hostname", "address": name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": machine.kubelet_port}},
        "nodeInfo": {
            "machineID": machine.machine_id,
            "systemUUID": machine.machine_id,
            "bootID": machine.boot_id,
            "kernelVersion": machine.kernel,
            "osImage": machine.os_image,
            "containerRuntimeVersion": machine.runtime,
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        },
    }


def changed(new: Object, old: Object) -> bool:
    """Tell whether ``new`` (without times) differs from the node's present status in a field that is ours."""

    def plain(conditions: list[Object]) -> dict[str, tuple[Any, ...]]:
        return {c["type"]: (c.get("status"), c.get("reason"), c.get("message")) for c in conditions}

    before = plain(old.get("conditions") or [])
    if any(before.get(kind) != value for kind, value in plain(new["conditions"]).items()):
        return True
    information = {field: value for field, value in new["nodeInfo"].items() if value}
    if any((old.get("nodeInfo") or {}).get(field) != value for field, value in information.items()):
        return True
    if any(_amounts(new[field]) != _amounts(old.get(field) or {}) for field in ("capacity", "allocatable")):
        return True
    return any(new[field] != old.get(field) for field in ("addresses", "daemonEndpoints"))


def _amounts(resources: Mapping[str, str]) -> dict[str, Fraction]:
    """Values, since the API server writes 1024Ki as 1Mi."""
    return {name: quantity.parse(text) for name, text in resources.items()}


def patch(new: Object, old: Object, now: str) -> Object:
    """The strategic merge patch of /status that makes ``old`` into ``new``; conditions of others are left alone."""
    body = {
        **new,
        "conditions": timed(new["conditions"], old.get("conditions") or [], now),
        "addresses": [*new["addresses"], {"$patch": "replace"}],
    }
    for field in ("capacity", "allocatable"):
        gone = {resource: None for resource in old.get(field) or {} if resource not in new[field]}
        body[field] = {**new[field], **gone}
    return {"status": body}
