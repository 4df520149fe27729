import dataclasses
from typing import Any

import pytest

from hpk import config as configuration
from hpk import errors, paths
from hpk.kubelet import etcfiles, images, plan, podplan

CONFIG = configuration.Config()
WHERE = paths.Paths("/home/a/.hpk")
IMAGE = images.ImageInfo(
    "app:1",
    "docker.io/library/app@sha256:1",
    "/home/a/.hpk/images/1.sif",
    {
        "Entrypoint": ["/entry"],
        "Cmd": ["cmd", "$(A)"],
        "Env": ["A=image", "PATH=/opt/bin", "BARE"],
        "WorkingDir": "/work",
        "StopSignal": "3",
    },
    "root:x:0:0:root:/root:/bin/sh\n",
)


def pod(container: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "namespace": "ns", "uid": "u-1", **(metadata or {})},
        "spec": {"containers": [{"name": "main", "image": "app:1", **(container or {})}], **spec},
        "status": {"startTime": "2026-01-01T00:00:00Z"},
    }


def build(subject: dict[str, Any], image: images.ImageInfo = IMAGE, **resolved: Any) -> podplan.PodPlan:
    names = [item["name"] for item in [*(subject["spec"].get("initContainers") or []), *subject["spec"]["containers"]]]
    return plan.build(subject, plan.Resolved(images=dict.fromkeys(names, image), **resolved), config=CONFIG, where=WHERE)


@pytest.mark.parametrize(
    ("container", "command"),
    [
        ({}, ("/entry", "cmd", "$(A)")),  # the image's words are not expanded
        ({"args": ["x", "$(A)"]}, ("/entry", "x", "$(A)")),  # nor do its variables count
        ({"args": ["$(B)"], "env": [{"name": "B", "value": "b"}]}, ("/entry", "b")),
        ({"command": ["/bin/sh", "-c"]}, ("/bin/sh", "-c")),
        ({"command": ["/bin/sh"], "args": ["-c", "echo $$(A) $HOME"]}, ("/bin/sh", "-c", "echo $(A) $HOME")),
        (
            {"args": ["--ip=$(IP)"], "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]},
            ("/entry", f"--ip={podplan.POD_IP}"),
        ),
    ],
)
def test_command(container: dict[str, Any], command: tuple[str, ...]) -> None:
    assert build(pod(container)).containers[0].command == command


def test_no_command_at_all() -> None:
    with pytest.raises(errors.NotReady, match="no command specified") as caught:
        build(pod(), dataclasses.replace(IMAGE, config={}))
    assert (caught.value.reason, caught.value.container) == ("CreateContainerError", "main")


def test_environment_in_rising_priority() -> None:
    found = build(
        pod({"env": [{"name": "A", "value": "pod"}], "tty": True}), services={"A": "service", "KUBERNETES_SERVICE_HOST": "192.0.2.1"}
    ).containers[0]
    assert found.env == {
        "PATH": "/opt/bin",
        "HOME": "/root",
        "HOSTNAME": "web",
        "TERM": "xterm",
        "A": "pod",
        "KUBERNETES_SERVICE_HOST": "192.0.2.1",
    }
    assert "HOSTNAME" not in build(pod(hostNetwork=True)).containers[0].env


def test_fields_of_the_container() -> None:
    container = {
        "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
        "readinessProbe": {"tcpSocket": {"port": 1}},
        "startupProbe": {"httpGet": {"port": "none"}},
        "lifecycle": {"preStop": {"httpGet": {"port": "http"}}, "stopSignal": "SIGUSR1"},
        "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 5},
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "terminationMessagePath": "/tmp/end",
        "workingDir": "/else",
    }
    found = build(pod(container)).containers[0]
    assert found.liveness_probe == {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 3}
    assert found.readiness_probe == {"tcpSocket": {"port": 1}}
    assert found.startup_probe == {"httpGet": {"port": "none"}}
    assert found.lifecycle == {"preStop": {"httpGet": {"port": 8080}}}
    assert (found.stop_signal, found.working_dir, found.gpu) == ("SIGUSR1", "/else", "nvidia")
    assert (found.run_as_user, found.user_name, found.home, found.read_only_root) == (5, "5", "/", True)
    assert found.termination_message_path == "/tmp/end"
    plain = build(pod()).containers[0]
    assert (plain.stop_signal, plain.working_dir, plain.lifecycle) == ("SIGQUIT", "/work", None)


def test_the_pod() -> None:
    found = build(
        pod(
            metadata={"annotations": {"slurm-job.hpk.io/flags": "-n 4", "slurm-job.hpk.io/mpi-flags": "--mpi=pmix"}},
            initContainers=[{"name": "first", "image": "app:1"}, {"name": "side", "image": "app:1", "restartPolicy": "Always"}],
            restartPolicy="Never",
            terminationGracePeriodSeconds=0,
            activeDeadlineSeconds=5,
        )
    )
    assert found.pod_dir == "/home/a/.hpk/pods/ns_web_u-1"
    assert [item.name for item in found.init_containers] == ["first", "side"]
    assert [item.restart_policy for item in found.init_containers] == [None, "Always"]
    assert found.job.flags == ("--ntasks=4",)
    assert found.containers[0].mpi_flags == ("--mpi=pmix",)
    assert found.init_containers[0].mpi_flags is None
    assert (found.restart_policy, found.termination_grace_period, found.active_deadline) == ("Never", 0, 5)
    assert found.start_time == "2026-01-01T00:00:00Z"
    assert found.namespaces == ("user", "mnt", "ipc", "uts")
    assert build(pod(hostNetwork=True, hostIPC=True)).namespaces == ("user", "mnt")


def test_configuration_errors_name_the_container() -> None:
    subject = pod({"envFrom": [{"configMapRef": {"name": "later"}}]})
    with pytest.raises(errors.NotReady, match='configmap "later" not found') as caught:
        build(subject)
    assert (caught.value.reason, caught.value.container, caught.value.event) == ("CreateContainerConfigError", "main", "Failed")
    assert build(subject, config_maps={"later": {"data": {"X": "1"}}}).containers[0].env["X"] == "1"


def test_limits_of_the_job_stand_in_for_missing_ones() -> None:
    subject = pod({"env": [{"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}]})
    assert build(subject, node_memory=77).containers[0].env["M"] == "77"
    subject["spec"]["containers"].append({"name": "b", "image": "app:1", "resources": {"requests": {"memory": "1Gi"}}})
    assert build(subject, node_memory=77).containers[0].env["M"] == str(2**30)


def test_etc_files_are_bound_unless_the_pod_mounts_its_own() -> None:
    found = build(
        pod(hostAliases=[{"ip": "192.0.2.9", "hostnames": ["db", "db.local"]}], dnsPolicy="None", dnsConfig={"nameservers": ["192.0.2.53"]})
    )
    hosts = found.job_volumes[-1]
    assert hosts.kind == "hosts"
    assert f"{podplan.POD_IP}\tweb\n" in hosts.content
    assert hosts.content.endswith("# Entries added by HostAliases.\n192.0.2.9\tdb\tdb.local\n")
    assert [(item.source, item.target) for item in found.containers[0].mounts] == [
        (hosts.path, "/etc/hosts"),
        (found.pod_dir + "/etc/resolv.conf", "/etc/resolv.conf"),
    ]
    own = build(pod({"volumeMounts": [{"name": "v", "mountPath": "/etc/hosts"}]}, volumes=[{"name": "v", "hostPath": {"path": "/h"}}]))
    assert [item.source for item in own.containers[0].mounts] == ["/h"]


def test_hostname() -> None:
    def names(**spec: Any) -> tuple[str, str]:
        return etcfiles.hostname({"metadata": {"name": spec.pop("name", "web"), "namespace": "ns"}, "spec": spec}, "cluster.local")

    assert names() == ("web", "")
    assert names(hostname="h", subdomain="s") == ("h", "h.s.ns.svc.cluster.local")
    assert names(subdomain="s", setHostnameAsFQDN=True)[0] == "web.s.ns.svc.cluster.local"
    assert names(name="a" * 62 + ".b" + "c" * 100)[0] == "a" * 62
    assert len(names(name="x" * 253)[0]) == 63
    with pytest.raises(errors.Rejected, match="setHostnameAsFQDN"):
        names(hostname="h" * 60, subdomain="s", setHostnameAsFQDN=True)


def test_resolv_conf() -> None:
    node = "# made by hand\nnameserver 192.0.2.1\nsearch site.org\noptions ndots:1 rotate\n"
    assert etcfiles.resolv_conf({"spec": {}}, node) is None
    assert etcfiles.resolv_conf({"spec": {"dnsPolicy": "Default"}}, node) is None
    config = {"nameservers": ["192.0.2.2"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "5"}, {"name": "edns0"}]}
    assert etcfiles.resolv_conf({"spec": {"dnsConfig": config}}, node) == (
        "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch site.org a.b\noptions ndots:5 rotate edns0\n"
    )
    assert etcfiles.resolv_conf({"spec": {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["::1"]}}}, node) == "nameserver ::1\n"


def test_length_limits() -> None:
    name = "n" * 253
    found = build(pod({"name": "c" * 63}, metadata={"name": name, "namespace": "s" * 63}))
    assert len(found.pod_dir.rsplit("/", 1)[1]) <= 255
    assert found.job.name == "s" * 63 + "/" + name
    assert len(found.hostname) == 63
