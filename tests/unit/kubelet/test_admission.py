import copy
from typing import Any

import pytest

from hpk import config as configuration
from hpk import errors
from hpk.kubelet import admission

CONFIG = configuration.Config()


def pod(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"containers": [{"name": "main", "image": "busybox"}], **spec},
    }


def container(**fields: Any) -> dict[str, Any]:
    return pod(containers=[{"name": "main", "image": "busybox", **fields}])


ALLOWED = [
    pod(),
    pod(hostNetwork=True, hostIPC=True, hostUsers=False, shareProcessNamespace=False),
    pod(
        securityContext={
            "runAsUser": 1000,
            "fsGroup": 2000,
            "seLinuxOptions": {"level": "s0"},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    ),
    container(securityContext={"capabilities": {"add": ["NET_BIND_SERVICE", "CAP_CHOWN", "sys_ptrace"], "drop": ["ALL"]}}),
    container(securityContext={"privileged": False, "procMount": "Default", "allowPrivilegeEscalation": True}),
    container(ports=[{"containerPort": 80, "hostPort": 80}, {"containerPort": 81}]),
    container(volumeMounts=[{"name": "v", "mountPath": "/v", "mountPropagation": "HostToContainer", "recursiveReadOnly": "IfPossible"}]),
    container(image="/home/a/x.sif"),
    pod(volumes=[{"name": "v"}, {"name": "e", "emptyDir": {"medium": "Memory"}}, {"name": "h", "hostPath": {"path": "/data"}}]),
    pod(volumes=[{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {"path": "x", "optional": True}}]}}]),
    pod(os={"name": "linux"}),
]


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(case: dict[str, Any]) -> None:
    before = copy.deepcopy(case)
    admission.check(case, CONFIG)
    assert case == before


REFUSED = [
    (pod(hostPID=True), "UnsupportedPodSpec", "spec.hostPID:"),
    (pod(shareProcessNamespace=True), "UnsupportedPodSpec", "spec.shareProcessNamespace:"),
    (pod(os={"name": "windows"}), "PodOSNotSupported", "OS field doesn't match"),
    (pod(resourceClaims=[{"name": "gpu"}]), "UnsupportedPodSpec", "spec.resourceClaims:"),
    (pod(securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}), "SysctlForbidden", "kernel.msgmax"),
    (pod(securityContext={"seccompProfile": {"type": "Localhost"}}), "UnsupportedPodSpec", "spec.securityContext.seccompProfile"),
    (
        pod(initContainers=[{"name": "i", "image": "x", "securityContext": {"privileged": True}}]),
        "UnsupportedPodSpec",
        r"spec.initContainers\[0\].securityContext.privileged:",
    ),
    (container(securityContext={"procMount": "Unmasked"}), "UnsupportedPodSpec", "procMount"),
    (container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}), "UnsupportedPodSpec", "capabilities.add: SYS_ADMIN"),
    (container(securityContext={"capabilities": {"add": ["ALL"]}}), "UnsupportedPodSpec", "capabilities.add: ALL"),
    (container(securityContext={"windowsOptions": {"hostProcess": True}}), "UnsupportedPodSpec", "windowsOptions.hostProcess"),
    (container(securityContext={"appArmorProfile": {"type": "Localhost"}}), "AppArmor", "appArmorProfile"),
    (container(volumeDevices=[{"name": "v"}]), "UnsupportedPodSpec", "volumeDevices"),
    (container(volumeMounts=[{"name": "v", "mountPropagation": "Bidirectional"}]), "UnsupportedPodSpec", "mountPropagation"),
    (container(volumeMounts=[{"name": "v", "recursiveReadOnly": "Enabled"}]), "UnsupportedPodSpec", "recursiveReadOnly"),
    (container(ports=[{"containerPort": 80, "hostPort": 8080}]), "UnsupportedPodSpec", r"ports\[0\].hostPort: 8080"),
    (container(ports=[{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"}]), "UnsupportedPodSpec", "hostIP"),
    (container(env=[{"name": "X", "valueFrom": {"fileKeyRef": {}}}]), "UnsupportedPodSpec", r"env\[0\].valueFrom.fileKeyRef"),
    (container(image="/home/../etc"), "UnsupportedPodSpec", "image"),
    (container(resources={"claims": [{"name": "gpu"}]}), "UnsupportedPodSpec", "claims"),
    (container(resources={"limits": {"example.com/fpga": "1"}}), "UnsupportedPodSpec", r"requests\[example.com/fpga\]: no gres"),
    (container(resources={"requests": {"cpu": "70000"}}), "UnsupportedPodSpec", "70000 CPUs"),
    (container(resources={"requests": {"memory": "2Zi"}}), "UnsupportedPodSpec", r"containers\[0\].resources.requests\[memory\]: '2Zi'"),
    (pod(volumes=[{"name": "v", "nfs": {"server": "s", "path": "/"}}]), "UnsupportedPodSpec", r"spec.volumes\[0\].nfs:"),
    (pod(volumes=[{"name": "v", "csi": {"driver": "d"}}]), "UnsupportedPodSpec", r"spec.volumes\[0\].csi:"),
    (pod(volumes=[{"name": "v", "emptyDir": {"medium": "HugePages"}}]), "UnsupportedPodSpec", r"volumes\[0\].emptyDir.medium: HugePages"),
    (pod(volumes=[{"name": "v", "hostPath": {"path": "/a/../b"}}]), "UnsupportedPodSpec", "hostPath.path"),
    (
        pod(volumes=[{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}]),
        "UnsupportedPodSpec",
        r"projected.sources\[0\].clusterTrustBundle",
    ),
]


@pytest.mark.parametrize(("case", "reason", "words"), REFUSED)
def test_refused_with_the_fields_name(case: dict[str, Any], reason: str, words: str) -> None:
    with pytest.raises(errors.Rejected, match=words) as caught:
        admission.check(case, CONFIG)
    assert caught.value.reason == reason
    assert "\n" not in caught.value.message


def test_bad_annotation_is_refused() -> None:
    case = pod()
    case["metadata"]["annotations"] = {"slurm-job.hpk.io/flags": "--wrap=id"}
    with pytest.raises(errors.Rejected, match="--wrap cannot be set"):
        admission.check(case, CONFIG)
