"""The main job as its users see it: one sbatch, then ordinary YAML; each Pod is a Slurm job. Real parts only."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.e2e.cluster import Cluster, pod, terminated, wait_for

pytestmark = pytest.mark.e2e


def workload(kind: str, name: str, **spec: object) -> dict:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [
                {"name": "main", "image": "busybox", "command": ["sh", "-c", "trap 'exit 0' TERM; hostname; sleep 1000 & wait"]}
            ],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


def mounted(volume: str, path: str) -> dict:
    """Part of a container that mounts one volume."""
    return {"volumeMounts": [{"name": volume, "mountPath": path}]}


def test_node_is_ready_and_true(alice: Cluster) -> None:
    (node,) = alice.list("nodes")
    conditions = {item["type"]: item["status"] for item in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert conditions["MemoryPressure"] == "False"
    # three nodes of eight CPUs with two GPUs each, as the bed's slurm.conf says
    assert node["status"]["capacity"]["cpu"] == "24"
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "6"
    assert node["status"]["nodeInfo"]["containerRuntimeVersion"].startswith(("apptainer://", "singularity://"))
    lease = alice.get("lease", node["metadata"]["name"], "kube-node-lease")
    assert lease["spec"]["renewTime"]


def test_cluster_files_are_private(alice: Cluster, bob: Cluster) -> None:
    modes = alice.run("stat", "-c", "%a", f"{alice.home}/.hpk", f"{alice.home}/.hpk/kubeconfig").stdout.split()
    assert modes == ["700", "600"]
    stolen = bob.run("cat", f"{alice.home}/.hpk/kubeconfig", check=False)
    assert stolen.returncode != 0


def test_deployment_runs_on_several_hosts_and_is_listed_by_slurm(alice: Cluster) -> None:
    deployment = workload("Deployment", "web", replicas=3)
    # five of a node's eight CPUs each, so that no two fit on one
    deployment["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "5"}}
    alice.apply(deployment)
    alice.kubectl("rollout", "status", "deployment/web", "--timeout=90s", timeout=100)
    pods = alice.list("pods", "app=web")
    names = {f"default/{item['metadata']['name']}" for item in pods}
    jobs = [job for job in alice.queue() if job["name"] in names]
    assert {job["name"] for job in jobs} == names
    assert {job["state"] for job in jobs} == {"RUNNING"}
    assert len({job["host"] for job in jobs}) >= 2
    assert {item["status"]["hostIP"] for item in pods} == {alice.bed.run("getent", "hosts", job["host"]).stdout.split()[0] for job in jobs}
    for item in pods:  # the hostname of a Pod is its name, whatever host it runs on
        assert alice.wait(lambda item=item: alice.logs(item["metadata"]["name"])).strip() == item["metadata"]["name"]
    alice.delete("deployment", "web")
    alice.wait(lambda: not [job for job in alice.queue() if job["name"] in names], 60)
    ids = ",".join(job["id"] for job in jobs)
    wait_for(lambda: names <= set(alice.run("sacct", "-X", "-n", "-P", "-j", ids, "-o", "JobName").stdout.split()), 30)


def test_job_completes_with_its_output(alice: Cluster) -> None:
    template = pod("x", "sh", "-c", "echo hello from $(hostname)")
    alice.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "hello"},
            "spec": {"completions": 3, "parallelism": 2, "template": {"spec": template["spec"]}},
        }
    )
    alice.kubectl("wait", "--for=condition=Complete", "job/hello", "--timeout=90s", timeout=100)
    pods = alice.list("pods", "job-name=hello")
    assert len(pods) == 3
    for item in pods:
        assert item["status"]["phase"] == "Succeeded"
        assert alice.logs(item["metadata"]["name"]) == f"hello from {item['metadata']['name']}\n"
    alice.delete("job", "hello")


def test_cronjob_makes_jobs(alice: Cluster) -> None:
    template = pod("x", "true")
    alice.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "tick"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": template["spec"]}}}},
        }
    )
    alice.wait(lambda: any(item["status"].get("succeeded") for item in alice.list("jobs")), 130)
    alice.delete("cronjob", "tick")


def test_statefulset_starts_in_order(alice: Cluster) -> None:
    alice.apply(workload("StatefulSet", "db", replicas=2, serviceName="db"))
    alice.kubectl("rollout", "status", "statefulset/db", "--timeout=90s", timeout=100)
    first, second = (alice.get("pod", f"db-{number}") for number in (0, 1))
    assert first["status"]["startTime"] <= second["status"]["startTime"]
    assert alice.logs("db-1") == "db-1\n"
    alice.delete("statefulset", "db")
    alice.wait(lambda: not alice.list("pods", "app=db"))


def test_logs_follow(alice: Cluster) -> None:
    alice.apply(pod("talker", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 1; done"))
    alice.wait_phase("talker", "Running", "Succeeded")
    argv = alice.bed.argv(["env", f"KUBECONFIG={alice.home}/.hpk/kubeconfig", "kubectl", "logs", "-f", "talker"], user="alice")
    begin = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        first = follower.stdout.readline()
        arrival = time.monotonic() - begin
        rest = follower.stdout.read()
        assert follower.wait(30) == 0
        assert time.monotonic() - begin > arrival  # it waited for the lines that came later
    assert first + rest == "".join(f"line {number}\n" for number in range(1, 6))
    assert alice.logs("talker", "--tail=2") == "line 4\nline 5\n"
    alice.delete("pod", "talker")


def test_delete_ends_the_job_and_tells_the_container_first(alice: Cluster) -> None:
    script = f"trap 'echo bye > {alice.home}/goodbye; exit 0' TERM; echo up; sleep 1000 & wait"
    volumes = [{"name": "home", "hostPath": {"path": alice.home}}]
    alice.apply(pod("polite", "sh", "-c", script, volumes=volumes, container=mounted("home", alice.home)))
    alice.wait_phase("polite", "Running")
    alice.wait(lambda: alice.logs("polite") == "up\n")
    alice.delete("pod", "polite")
    assert alice.run("cat", f"{alice.home}/goodbye").stdout == "bye\n"
    alice.wait(lambda: not [job for job in alice.queue() if job["name"] == "default/polite"], 30)


def test_exit_codes_reasons_and_restarts_are_true(alice: Cluster) -> None:
    alice.apply(pod("seven", "sh", "-c", "exit 7"))
    failed = alice.wait_phase("seven", "Failed")
    assert (terminated(failed)["exitCode"], terminated(failed)["reason"]) == (7, "Error")
    assert terminated(failed)["startedAt"] <= terminated(failed)["finishedAt"]

    script = "test -e /data/second && exit 0; touch /data/second; exit 1"
    volumes = [{"name": "data", "emptyDir": {}}]
    alice.apply(pod("again", "sh", "-c", script, restartPolicy="OnFailure", volumes=volumes, container=mounted("data", "/data")))
    done = alice.wait_phase("again", "Succeeded", timeout=90)
    (status,) = done["status"]["containerStatuses"]
    assert status["restartCount"] == 1

    alice.apply(pod("missing-program", "/no/such/program"))
    failed = alice.wait_phase("missing-program", "Failed")
    assert terminated(failed)["reason"] == "StartError"
    assert "/no/such/program" in terminated(failed)["message"]
    alice.delete("pod", "seven", "again", "missing-program")


def test_out_of_memory_is_told(alice: Cluster) -> None:
    hog = pod(
        "hog",
        "python3",
        "-c",
        "x = bytearray(400 * 1024 * 1024); print(len(x))",
        image="python",
        container={"resources": {"limits": {"memory": "100Mi"}}},
    )
    alice.apply(hog)
    failed = alice.wait_phase("hog", "Failed", timeout=90)
    assert (terminated(failed)["reason"], terminated(failed)["exitCode"]) == ("OOMKilled", 137)
    alice.delete("pod", "hog")


def test_init_containers_run_in_order_and_containers_share_volumes(alice: Cluster) -> None:
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    shell = {"image": "busybox", **mount}
    alice.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "many"},
            "spec": {
                "restartPolicy": "Never",
                "volumes": [{"name": "data", "emptyDir": {}}],
                "initContainers": [
                    {"name": "one", "command": ["sh", "-c", "echo one > /data/x"], **shell},
                    {"name": "two", "command": ["sh", "-c", "echo two >> /data/x"], **shell},
                ],
                "containers": [
                    {
                        "name": "left",
                        "command": ["sh", "-c", "cat /data/x; echo left > /data/left; until test -e /data/right; do sleep 0.1; done"],
                        **shell,
                    },
                    {
                        "name": "right",
                        "command": ["sh", "-c", "until test -e /data/left; do sleep 0.1; done; echo right | tee /data/right"],
                        **shell,
                    },
                ],
            },
        }
    )
    done = alice.wait_phase("many", "Succeeded")
    assert [terminated(done, name, "initContainerStatuses")["exitCode"] for name in ("one", "two")] == [0, 0]
    assert alice.logs("many", "-c", "left") == "one\ntwo\n"
    assert alice.logs("many", "-c", "right") == "right\n"
    alice.delete("pod", "many")


def test_environment_and_volumes(alice: Cluster) -> None:
    odd = "two\nlines, 'quotes', \"more\", $HOME `id` $(id)"
    alice.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "blue", "odd": odd}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"password": "s3cret"}},
    )
    env = [
        {"name": "PLAIN", "value": "v"},
        {"name": "REF", "value": "$(PLAIN)-$(NOPE)-$$(PLAIN)"},
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "ODD", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "odd"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "key", "key": "password"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
    ]
    volumes = [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "key", "secret": {"secretName": "key", "defaultMode": 0o400}},
        {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [{"name": name, "mountPath": f"/mnt/{name}"} for name in ("settings", "key", "info", "memory")]
    script = """
printf '%s|' "$PLAIN" "$REF" "$COLOUR" "$PASSWORD" "$POD" "$CPUS"; echo
[ "$ODD" = "$(cat /mnt/settings/odd)" ] && echo odd-same
cat /mnt/key/password; echo; cat /mnt/info/labels; echo
echo x > /mnt/memory/x && cat /mnt/memory/x; echo y > /root-is-writable && cat /root-is-writable
test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token
env | grep -e SLURM -e alice; id -u; pwd
"""
    container = {"env": env, "volumeMounts": mounts, "workingDir": "/tmp", "resources": {"requests": {"cpu": "1500m"}}}
    alice.apply(pod("env", "sh", "-c", script, metadata={"labels": {"app": "env"}}, volumes=volumes, container=container))
    done = alice.wait_phase("env", "Succeeded", "Failed")
    lines = alice.logs("env").splitlines()
    assert lines == ["v|v-$(NOPE)-$(PLAIN)|blue|s3cret|env|2|", "odd-same", "s3cret", 'app="env"', "x", "y", "token", "0", "/tmp"], (
        lines,
        done["status"],
    )
    folder = f"{alice.home}/.hpk/pods/default_env_{done['metadata']['uid']}"
    assert "s3cret" not in alice.run("bash", "-c", f"cat {folder}/job.sh {alice.home}/.hpk/logs/*.log").stdout
    alice.delete("pod", "env")
    alice.delete("configmap/settings", "secret/key")


def test_run_as_user_is_what_the_container_sees(alice: Cluster) -> None:
    context = {"runAsUser": 1234, "runAsGroup": 4321}
    alice.apply(pod("ids", "sh", "-c", "id -u; id -g; touch /tmp/x && ls -ln /tmp/x | awk '{print $3}'", securityContext=context))
    alice.wait_phase("ids", "Succeeded")
    assert alice.logs("ids") == "1234\n4321\n1234\n"
    alice.delete("pod", "ids")


def test_service_account_token_reaches_the_api_server(alice: Cluster) -> None:
    call = """
import json, os, ssl, urllib.request
base = "/var/run/secrets/kubernetes.io/serviceaccount/"
host = os.environ["KUBERNETES_SERVICE_HOST"] + ":" + os.environ["KUBERNETES_SERVICE_PORT"]
request = urllib.request.Request("https://" + host + "/apis/authentication.k8s.io/v1/selfsubjectreviews", method="POST",
    headers={"Authorization": "Bearer " + open(base + "token").read(), "Content-Type": "application/json"},
    data=json.dumps({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}).encode())
context = ssl.create_default_context(cafile=base + "ca.crt")
print(json.load(urllib.request.urlopen(request, context=context))["status"]["userInfo"]["username"])
"""
    alice.apply(pod("whoami", "python3", "-c", call, image="python"))
    alice.wait_phase("whoami", "Succeeded", "Failed")
    assert alice.logs("whoami") == "system:serviceaccount:default:default\n"
    alice.delete("pod", "whoami")


def test_flags_reach_slurm(alice: Cluster) -> None:
    annotations = {"slurm-job.hpk.io/flags": "--partition=high --time=00:07:00"}
    alice.apply(pod("flagged", "sleep", "100", metadata={"annotations": annotations}))
    alice.wait_phase("flagged", "Running")
    (job,) = [item for item in alice.queue() if item["name"] == "default/flagged"]
    assert alice.run("squeue", "-h", "-j", job["id"], "-o", "%P %l").stdout.strip() == "high 7:00"
    alice.delete("pod", "flagged", "--grace-period=1")


def test_active_deadline_fails_the_pod(alice: Cluster) -> None:
    alice.apply(pod("late", "sleep", "1000", activeDeadlineSeconds=8, terminationGracePeriodSeconds=1))
    failed = alice.wait_phase("late", "Failed")
    assert failed["status"]["reason"] == "DeadlineExceeded"
    alice.delete("pod", "late")


def test_queued_pod_tells_slurms_reason(alice: Cluster) -> None:
    held = pod("held", "true", metadata={"annotations": {"slurm-job.hpk.io/flags": "--hold"}})
    alice.apply(held)
    alice.wait(lambda: any("JobHeldUser" in event["message"] for event in alice.events("held")))
    # the status follows within a moment: changes in one phase are sent together
    alice.wait(lambda: "JobHeldUser" in str(alice.get("pod", "held")["status"]["conditions"]))
    waiting = alice.get("pod", "held")
    assert waiting["status"]["phase"] == "Pending"
    assert waiting["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"
    (job,) = [item for item in alice.queue() if item["name"] == "default/held"]
    alice.run("scontrol", "release", job["id"])
    alice.wait_phase("held", "Succeeded")
    alice.delete("pod", "held")


def test_nothing_is_left_on_the_nodes(alice: Cluster) -> None:
    alice.apply(pod("spawner", "sh", "-c", "(sleep 4242 &) ; (setsid sleep 4242 &) ; sleep 0.5; exit 0"))
    alice.wait_phase("spawner", "Succeeded")
    hosts = alice.bed.nodes
    wait_for(lambda: not any(alice.bed.root("pgrep", "-f", "sleep 4242", host=host, check=False).stdout for host in hosts), 30)
    alice.delete("pod", "spawner")


DNS_QUERY = """
import json, os, socket, ssl, struct
state = os.path.expanduser("~/.hpk")
where = json.load(open(state + "/run/cluster.json"))["dns"]
context = ssl.create_default_context(cafile=state + "/pki/ca.crt")
context.check_hostname = False
context.load_cert_chain(state + "/pki/admin.crt", state + "/pki/admin.key")
name = b"".join(bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b".")) + b"\\0"
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
with context.wrap_socket(socket.create_connection((where["address"], where["port"]), 10)) as channel:
    channel.sendall(struct.pack(">H", len(query)) + query)
    print(socket.inet_ntoa(channel.recv(4096)[-4:]))
"""


def test_cluster_dns_answers(alice: Cluster) -> None:
    """CoreDNS listens on its node's loopback until Pods have a network of their own."""
    host = next(job["host"] for job in alice.queue() if job["id"] == alice.job)
    answer = alice.bed.run("python3", "-c", DNS_QUERY, host=host, user="alice").stdout.strip()
    assert answer == alice.get("service", "kubernetes")["spec"]["clusterIP"]


def test_two_users_share_the_nodes_and_do_not_meet(alice: Cluster, bob: Cluster) -> None:
    for cluster in (alice, bob):
        cluster.apply(pod("same-name", "sh", "-c", "echo mine; sleep 100", terminationGracePeriodSeconds=1))
    for cluster in (alice, bob):
        cluster.wait_phase("same-name", "Running")
        cluster.wait(lambda cluster=cluster: cluster.logs("same-name") == "mine\n")
    address = alice.run("kubectl", "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").stdout
    theirs = bob.run("kubectl", "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").stdout
    assert address != theirs
    # bob reaches alice's API server over the network and is not let in, with or without his own certificate
    refused = bob.run("kubectl", "--server", address, "--insecure-skip-tls-verify", "get", "pods", check=False)
    assert refused.returncode != 0
    assert "mine" not in bob.run("bash", "-c", f"cat {alice.home}/.hpk/pods/*/containers/*/*.log", check=False).stdout
    for cluster in (alice, bob):
        cluster.delete("pod", "same-name")
