"""Configuration: frozen dataclasses, read from the site's file, then the user's ``~/.hpk/hpk.yaml``, then HPK_* variables.

The YAML keys are the fields' names in camelCase, one mapping per section::

    slurm:
      partition: main
      account: physics
    images:
      mirrors:
        docker.io: registry.example.org:5000/docker.io
      insecure: ["registry.example.org:5000"]

An unknown key or a wrong type is InvalidInput with the file, the key and what was expected. No other module reads os.environ
for settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import typing
from collections.abc import Mapping
from typing import Any

import yaml

from hpk import errors, paths


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    name: str = "hpk"
    """Name of the cluster and of the context in the kubeconfig."""
    node_name: str = "hpk"
    """Name of the virtual node."""
    domain: str = "cluster.local"
    """DNS domain of the cluster."""
    service_cidr: str = "10.96.0.0/16"
    """Addresses of Services."""
    pod_cidr: str = "10.200.0.0/16"
    """Addresses of Pods, once the Pod network is used."""
    network: str = "host"
    """``host``: Pods use their node's network."""


@dataclasses.dataclass(frozen=True)
class ControlPlaneConfig:
    image: str = ""
    """Control-plane image to use instead of ~/.hpk/images/control-plane.sif, e.g. one that the site provides ($HPK_CONTROL_PLANE_IMAGE)."""
    image_source: str = "release"
    """How ``hpk image build`` gets the binaries: ``release`` or ``source``."""
    release_mirror: str = ""
    """Base URL (or folder) that has the release files by host and path; empty: the official hosts."""
    release_checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Release file (``hpk image files``) to its ``sha256:HEX`` or ``sha512:HEX``: for files whose checksum HPK does not know."""
    address: str = ""
    """Address of the control-plane node that compute and login nodes reach; empty: that of the node's host name."""
    port: int = 0
    """Port of the API server; 0: any free one, kept over restarts while it is free."""
    binaries: str = ""
    """Folder with etcd, kube-apiserver, kube-controller-manager and coredns on the node itself, run without a container."""
    etcd_dir: str = ""
    """Folder of etcd's data; empty: ~/.hpk/etcd. One on a node's own disk is faster than a slow home, but ties the cluster to that node."""
    verbosity: int = 1
    """Log verbosity (-v) of the Kubernetes components."""


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    partition: str = ""
    """Partition for Pods that name none; empty: the site's default."""
    account: str = ""
    """Slurm account for Pods that name none; empty: the user's default."""
    qos: str = ""
    """QOS for Pods that name none; empty: the user's default."""
    flags: str = ""
    """sbatch flags for every Pod, before those of the Pod's annotation."""
    environment: tuple[str, ...] = ()
    """Names of further environment variables of the control plane's job that Pods' jobs get, where a site's setup needs them."""
    poll_seconds: float = 2.0
    """Pace of the one squeue that serves all Pods; slower when nothing is queued."""
    timeout: float = 30.0
    """Seconds after which a Slurm command counts as not answered."""
    resources: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"nvidia.com/gpu": "gpu", "amd.com/gpu": "gpu"})
    """Extended resource name to gres name (with type where wanted: ``gpu:a100``)."""
    default_cpu: str = ""
    """CPU request for Pods without one; empty: sbatch's default (1)."""
    default_memory: str = ""
    """Memory request for Pods without one; empty: the partition's default."""


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
    mirrors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Registry host to the host (and path prefix) to pull from instead."""
    insecure: tuple[str, ...] = ()
    """Registry hosts spoken to by plain HTTP."""
    max_bytes: int = 50 * 1024**3
    """Bytes that images of Pods may take in ~/.hpk/images: beyond them those go that no Pod uses, longest unused first. 0: no bound."""
    pull_timeout: float = 600.0
    """Seconds that one pull may take."""
    parallel_pulls: int = 2
    """Pulls at the same time on the kubelet's node."""
    temp_dir: str = ""
    """Folder for layers while an image is made, best on local disk; empty: ~/.hpk/images/tmp."""
    squashfs_args: str = "-comp zstd -Xcompression-level 3"
    """Arguments of mksquashfs for new image files; these take half the time of its own default. Empty: that default."""


@dataclasses.dataclass(frozen=True)
class KubeletConfig:
    max_pods: int = 10000
    """Capacity ``pods`` of the virtual node."""
    status_update_seconds: float = 10.0
    """Pace of the node's status updates when nothing changes faster."""
    lease_seconds: int = 40
    """Duration of the node's Lease; renewed four times as often (KEP-589)."""
    log_max_bytes: int = 10 * 1024 * 1024
    """Size at which a container's log is rotated (upstream's containerLogMaxSize)."""
    log_max_files: int = 5
    """Rotated logs kept per container (upstream's containerLogMaxFiles)."""


@dataclasses.dataclass(frozen=True)
class Config:
    cluster: ClusterConfig = ClusterConfig()
    control_plane: ControlPlaneConfig = ControlPlaneConfig()
    slurm: SlurmConfig = SlurmConfig()
    images: ImagesConfig = ImagesConfig()
    kubelet: KubeletConfig = KubeletConfig()


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Check ``value`` against a field's type and return it in that type."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _section({} if value is None else value, typing.cast(type, hint), where)
    if hint is str and isinstance(value, str):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is bool and isinstance(value, bool):
        return value
    if origin is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
            return dict(value)
        raise errors.InvalidInput(f"{where}: expected a mapping of strings to strings")
    name = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), "a list of strings"
    )
    raise errors.InvalidInput(f"{where}: expected {name}, got {value!r}")


def _section(raw: Any, cls: type, where: str) -> Any:
    if not isinstance(raw, dict):
        raise errors.InvalidInput(f"{where}: expected a mapping")
    hints = typing.get_type_hints(cls)
    fields = {_camel(field.name): field.name for field in dataclasses.fields(cls)}
    values = {}
    for key, value in raw.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            meant = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(fields))}"
            raise errors.InvalidInput(f"{where}.{key}: unknown field{meant}")
        values[fields[key]] = _convert(value, hints[fields[key]], f"{where}.{key}")
    return cls(**values)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            raw = yaml.safe_load(file)
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as exc:
        raise errors.InvalidInput(f"{path}: cannot be read as YAML: {' '.join(str(exc).split())}") from exc
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise errors.InvalidInput(f"{path}: expected a mapping at the top")
    _section(raw, Config, path)  # errors name the file they are in
    return raw


def _check(config: Config) -> Config:
    for name, value, known in (
        ("cluster.network", config.cluster.network, ("host",)),
        ("controlPlane.imageSource", config.control_plane.image_source, ("release", "source")),
    ):
        if value not in known:
            raise errors.InvalidInput(f"{name}: {value!r} is not one of {', '.join(known)}")
    for name, cidr in (("cluster.serviceCidr", config.cluster.service_cidr), ("cluster.podCidr", config.cluster.pod_cidr)):
        try:
            network = ipaddress.ip_network(cidr)
        except ValueError as exc:
            raise errors.InvalidInput(f"{name}: {exc}") from exc
        if not 4 <= network.max_prefixlen - network.prefixlen <= 20:  # kube-apiserver takes no larger one
            raise errors.InvalidInput(f"{name}: {cidr} must hold between 16 and 2^20 addresses")
    if config.images.max_bytes < 0:
        raise errors.InvalidInput(f"images.maxBytes: {config.images.max_bytes} is negative; 0 means no bound")
    if not 0 <= config.control_plane.port <= 65535:
        raise errors.InvalidInput(f"controlPlane.port: {config.control_plane.port} is not a port")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", config.cluster.node_name):
        raise errors.InvalidInput(f"cluster.nodeName: {config.cluster.node_name!r} is not a DNS name in lower case")
    return config


def load(where: paths.Paths, environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration. Raises InvalidInput that names file and key."""
    environ = os.environ if environ is None else environ
    raw = _merge(_read(environ.get("HPK_SITE_CONFIG", paths.SITE_CONFIG)), _read(where.config))
    if environ.get("HPK_CONTROL_PLANE_IMAGE"):
        raw = _merge({"controlPlane": {"image": environ["HPK_CONTROL_PLANE_IMAGE"]}}, raw)
    return _check(typing.cast(Config, _section(raw, Config, "hpk.yaml")))
