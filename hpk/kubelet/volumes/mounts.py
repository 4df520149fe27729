"""Which host path each volumeMount of a container binds, and what has to be made in the job before. Pure.

emptyDir                        folder in the job's scratch space or memory, made in the job
hostPath, PersistentVolumes     the path, checked or made by its type in the job: only there is the node known
configMap, secret, ...          folder below the Pod's folder, written by the kubelet (atomic.py)
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping
from typing import Any

from hpk import errors, paths
from hpk.kube import quantity
from hpk.kubelet import env, podplan
from hpk.kubelet.volumes import payload

Object = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class HostVolume:
    """Where a PersistentVolumeClaim's volume is."""

    path: str
    type: str = ""
    read_only: bool = False


def sources(
    spec: Object, pod_dir: paths.PodDir, claims: Mapping[str, HostVolume]
) -> tuple[dict[str, podplan.Mount], list[podplan.JobVolume]]:
    """Return, by volume name, a Mount without target, and what the job makes first. ``claims`` by volume name."""
    found: dict[str, podplan.Mount] = {}
    made: list[podplan.JobVolume] = []
    for volume in spec.get("volumes") or []:
        name, kind = volume["name"], payload.kind_of(volume)
        if kind in payload.KINDS:
            found[name] = podplan.Mount(pod_dir.volume(name), "", read_only=True)
        elif kind == "emptyDir":
            body = volume.get("emptyDir") or {}
            medium = body.get("medium") or ""
            path = f"{podplan.SHM if medium == 'Memory' else podplan.SCRATCH}/volumes/{name}"
            limit = body.get("sizeLimit")
            size = quantity.ceil(limit) if limit not in (None, "", 0, "0") else None
            made.append(podplan.JobVolume("emptyDir", name, path=path, medium=medium, size_limit=size, limit_text=str(limit or "")))
            found[name] = podplan.Mount(path, "")
        elif kind == "hostPath":
            body = volume["hostPath"]
            made.append(podplan.JobVolume("hostPath", name, path=body["path"], type=body.get("type") or ""))
            found[name] = podplan.Mount(body["path"], "")
        elif name in claims:
            claim = claims[name]
            made.append(podplan.JobVolume("hostPath", name, path=claim.path, type=claim.type))
            found[name] = podplan.Mount(claim.path, "", read_only=claim.read_only)
    return found, made


def container_mounts(
    container: Object, found: Mapping[str, podplan.Mount], variables: Mapping[str, str], pod_dir: paths.PodDir
) -> tuple[list[podplan.Mount], list[podplan.JobVolume]]:
    """Return the container's mounts, outer paths first, and the subPath folders to make. Raises env.ConfigError."""
    mounts: list[podplan.Mount] = []
    made: list[podplan.JobVolume] = []
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in found:
            raise env.ConfigError(f'volumeMounts: no volume is named "{mount["name"]}"')
        base = found[mount["name"]]
        source = base.source
        sub_path = _sub_path(mount, variables)
        if sub_path:
            source = f"{base.source}/{sub_path}"
            if not base.source.startswith(pod_dir.root + "/"):  # what the kubelet wrote holds no links but its own
                made.append(podplan.JobVolume("subPath", mount["name"], path=source, base=base.source, sub_path=sub_path))
        mounts.append(podplan.Mount(source, target(mount["mountPath"]), bool(mount.get("readOnly")) or base.read_only))
    return sorted(mounts, key=lambda item: item.target.count("/") if item.target != "/" else 0), made


def _sub_path(mount: Object, variables: Mapping[str, str]) -> str:
    path = mount.get("subPath") or ""
    if mount.get("subPathExpr"):
        missing: list[str] = []

        def lookup(name: str) -> str | None:
            if name not in variables:
                missing.append(name)
            return variables.get(name)

        path = env.expand(mount["subPathExpr"], lookup)
        if missing:
            raise env.ConfigError(f'missing value for "{missing[0]}"')
    if path.startswith("/"):
        raise env.ConfigError(f"error SubPath `{path}` must not be an absolute path")
    if ".." in path.split("/"):
        raise env.ConfigError(f"unable to provision SubPath `{path}`: must not contain '..'")
    return posixpath.normpath(path) if path not in ("", ".") else ""


def target(path: str) -> str:
    """A mountPath in one spelling: absolute, no trailing slash. Raises ConfigError for what would not stay where it says."""
    if ":" in path or "\0" in path or ".." in path.split("/"):
        raise env.ConfigError(f"invalid mountPath {path!r}")
    return posixpath.normpath("/" + path.lstrip("/"))


def claim_volume(claim: Object, volume: Object | None) -> HostVolume:
    """Return where the volume of a bound PersistentVolumeClaim is. Raises Rejected for a kind that a user cannot mount."""
    name = claim["metadata"]["name"]
    spec = (volume or {}).get("spec") or {}
    if spec.get("hostPath") is not None:
        return HostVolume(spec["hostPath"]["path"], spec["hostPath"].get("type") or "", False)
    if spec.get("local") is not None:
        return HostVolume(spec["local"]["path"], "Directory", False)
    kinds = [kind for kind in spec if kind in _PV_KINDS]
    raise errors.Rejected(
        "UnsupportedPodSpec",
        f'Pod was rejected: persistentvolumeclaim "{name}": its PersistentVolume is of kind {", ".join(kinds) or "unknown"}; '
        "a user can mount hostPath and local ones",
    )


_PV_KINDS = frozenset({"nfs", "csi", "iscsi", "fc", "cephfs", "rbd", "glusterfs", "azureFile", "azureDisk", "awsElasticBlockStore"})
