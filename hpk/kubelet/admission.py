"""Which Pods are refused, and why. Pure; called once for a Pod, before anything is made for it.

Refused is what an ordinary user cannot have, or what is not done yet: never silently dropped. The reasons are upstream's where it
has one (SysctlForbidden, PodOSNotSupported, ...); for the rest it is ``UnsupportedPodSpec``. The message names the field.

Accepted although only the user's own rights stand behind it: ``hostNetwork`` and ``hostIPC`` (the node's, as any process of the
user has them), ``seLinuxOptions`` (no effect, as on a node without SELinux), ``seccompProfile: RuntimeDefault``, ``fsGroup`` and
``supplementalGroups`` (files belong to the user whatever the number), ``hostUsers`` (there is always a user namespace).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpk import config as configuration
from hpk import errors
from hpk.kubelet import imageref, resources, slurmflags

REASON = "UnsupportedPodSpec"

#: Kinds of volume that a user can have.
VOLUMES = frozenset({"emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim", "ephemeral"})

#: What Docker's and containerd's default set holds: adding one of them changes nothing.
_DEFAULT_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
#: What a user namespace gives over its own processes.
_NAMESPACE_CAPABILITIES = frozenset({"SYS_PTRACE", "IPC_OWNER"})

Object = Mapping[str, Any]


def check(pod: Object, config: configuration.Config) -> None:
    """Raise Rejected when ``pod`` can never run here."""
    spec = pod["spec"]
    _check_pod(spec, config)
    for where, container in containers(spec):
        _check_container(where, container, spec, config)
    for number, volume in enumerate(spec.get("volumes") or []):
        _check_volume(f"spec.volumes[{number}]", volume)
    notes = (pod.get("metadata") or {}).get("annotations") or {}
    slurmflags.slurm_flags(notes)
    slurmflags.mpi_flags(notes)
    resources.job(pod, config)  # raises for amounts and resources that Slurm cannot be asked for


def containers(spec: Object) -> Iterator[tuple[str, Object]]:
    """All containers of a PodSpec with the path of each, init containers first."""
    for field in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(field) or []):
            yield f"spec.{field}[{number}]", container


def _refuse(field: str, problem: str, reason: str = REASON) -> errors.Rejected:
    return errors.Rejected(reason, f"Pod was rejected: {field}: {problem}")


def _check_pod(spec: Object, config: configuration.Config) -> None:
    if (spec.get("os") or {}).get("name", "linux") != "linux":
        raise errors.Rejected("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
    if spec.get("hostPID"):
        raise _refuse("spec.hostPID", "the node's process namespace needs privileges that HPK does not have; remove the field")
    if spec.get("shareProcessNamespace"):
        raise _refuse("spec.shareProcessNamespace", "each container has processes of its own; remove the field")
    if spec.get("resourceClaims"):
        raise _refuse("spec.resourceClaims", "dynamic resource allocation is not supported; ask for devices with resources.limits")
    security = spec.get("securityContext") or {}
    for sysctl in security.get("sysctls") or []:
        raise errors.Rejected(
            "SysctlForbidden",
            f"Pod was rejected: spec.securityContext.sysctls: forbidden sysctl: {sysctl.get('name', '')!r} not allowlisted",
        )
    _check_security("spec.securityContext", security)


def _check_security(where: str, security: Object) -> None:
    """What Pod and container security contexts have in common."""
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        raise _refuse(f"{where}.windowsOptions.hostProcess", "this is not a Windows node")
    if (security.get("seccompProfile") or {}).get("type") == "Localhost":
        raise _refuse(f"{where}.seccompProfile.localhostProfile", "no profiles are installed on the nodes; use RuntimeDefault")
    if (security.get("appArmorProfile") or {}).get("type", "Unconfined") == "Localhost":
        raise _refuse(f"{where}.appArmorProfile.localhostProfile", "loading a profile needs privileges; use RuntimeDefault", "AppArmor")


def _check_container(where: str, container: Object, spec: Object, config: configuration.Config) -> None:
    security = container.get("securityContext") or {}
    _check_security(f"{where}.securityContext", security)
    if security.get("privileged"):
        raise _refuse(f"{where}.securityContext.privileged", "privileged containers need privileges that HPK does not have")
    if security.get("procMount", "Default") != "Default":
        raise _refuse(f"{where}.securityContext.procMount", "only Default can be had")
    allowed = _DEFAULT_CAPABILITIES | _NAMESPACE_CAPABILITIES
    for name in (security.get("capabilities") or {}).get("add") or []:
        if name.upper().removeprefix("CAP_") not in allowed:
            raise _refuse(f"{where}.securityContext.capabilities.add", f"{name} cannot be given by a user namespace")
    if container.get("volumeDevices"):
        raise _refuse(f"{where}.volumeDevices", "block devices need privileges; use volumeMounts")
    for number, mount in enumerate(container.get("volumeMounts") or []):
        if mount.get("mountPropagation") == "Bidirectional":
            raise _refuse(f"{where}.volumeMounts[{number}].mountPropagation", "Bidirectional needs privileges")
        if mount.get("recursiveReadOnly") == "Enabled":
            raise _refuse(f"{where}.volumeMounts[{number}].recursiveReadOnly", "Enabled is not supported; use IfPossible")
    for number, port in enumerate(container.get("ports") or []):
        host_port = port.get("hostPort") or 0
        if not host_port:
            continue
        if port.get("hostIP") not in (None, "", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            raise _refuse(f"{where}.ports[{number}].hostIP", "a Pod listens on its node's addresses as it likes; remove the field")
        if config.cluster.network == "host" and host_port != port["containerPort"]:
            raise _refuse(
                f"{where}.ports[{number}].hostPort",
                f"{host_port} cannot lead to another containerPort ({port['containerPort']}) while Pods use their node's network",
            )
    for number, variable in enumerate(container.get("env") or []):
        if "fileKeyRef" in (variable.get("valueFrom") or {}):
            raise _refuse(f"{where}.env[{number}].valueFrom.fileKeyRef", "not supported; use a ConfigMap or Secret key")
    for number, claim in enumerate((container.get("resources") or {}).get("claims") or []):
        raise _refuse(f"{where}.resources.claims[{number}]", f"{claim.get('name')}: dynamic resource allocation is not supported")
    image = container.get("image") or ""
    if imageref.is_local(image) and ("\0" in image or ".." in image.split("/")):
        raise _refuse(f"{where}.image", f"{image!r} is not a clean absolute path")


def _check_volume(where: str, volume: Object) -> None:
    kinds = [kind for kind, value in volume.items() if kind != "name" and value is not None]
    kind = kinds[0] if kinds else "emptyDir"  # the API's default
    if kind not in VOLUMES:
        raise _refuse(f"{where}.{kind}", f"volumes of this kind are not supported; supported: {', '.join(sorted(VOLUMES))}")
    medium = (volume.get("emptyDir") or {}).get("medium") or ""
    if medium not in ("", "Memory"):
        raise _refuse(f"{where}.emptyDir.medium", f"{medium} needs privileges; use Memory or leave it out")
    if kind == "hostPath" and ".." in volume["hostPath"].get("path", "").split("/"):
        raise _refuse(f"{where}.hostPath.path", "must not contain '..'")
    if kind == "projected":
        for number, source in enumerate(volume["projected"].get("sources") or []):
            bundle = source.get("clusterTrustBundle")
            if bundle is not None and not bundle.get("optional"):
                raise _refuse(
                    f"{where}.projected.sources[{number}].clusterTrustBundle", "not supported; mark it optional or use a ConfigMap"
                )
            if source.get("podCertificate") is not None:
                raise _refuse(f"{where}.projected.sources[{number}].podCertificate", "not supported")
