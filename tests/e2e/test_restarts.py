"""Restarts of everything, one part after the other, while Pods run: their processes never notice, and what ended meanwhile is told.

In a state directory of its own, so that the other tests' clusters are left alone.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, pod, terminated, wait_for
from tests.testbed import Bed

pytestmark = pytest.mark.e2e

#: Seconds within which a controller replaces a Pod of a dead node after Slurm has noticed.
REPLACED_SECONDS = 5.0


class Own(Cluster):
    """A cluster of alice's in another state directory, started and ended as its user does: hpk up, hpk down, sbatch, scancel."""

    def __init__(self, bed: Bed, name: str) -> None:
        super().__init__(bed, "alice")
        self.state = f"{self.home}/{name}"
        self._outside = f"{bed.layout.home}/alice/{name}"

    def run(self, *argv: str, **options: Any) -> Any:
        return self.bed.run("env", f"HPK_HOME={self.state}", f"KUBECONFIG={self.state}/kubeconfig", *argv, user=self.user, **options)

    def up(self, *flags: str) -> None:
        self.run("hpk", "up", "--", *flags, timeout=150)

    def report(self) -> dict[str, Any]:
        try:
            with open(f"{self._outside}/run/cluster.json", encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def ready_since(self, job: str) -> bool:
        """Whether a run other than that of ``job`` is ready."""
        report = self.report()
        return bool(report.get("ready")) and report["jobID"] != job

    def explain(self) -> str:
        script = f"squeue -a; kubectl get pods,events 2>&1 | tail -30; cd {self.state} && tail -n 25 logs/*.log logs/hpk-*.out"
        return self.run("sh", "-c", script, check=False).stdout[-12000:]

    def stop(self) -> None:
        self.run("hpk", "down", check=False)
        jobs = self.run("squeue", "--me", "-h", "-o", "%i %Z").stdout.splitlines()
        mine = [job for job, folder in (line.split(" ", 1) for line in jobs) if folder.startswith(f"{self.state}/")]
        if mine:
            self.run("scancel", *mine)

    def pids(self, mark: str) -> dict[str, list[str]]:
        """Process ids by host of alice's processes whose command line has ``mark``: the container's own, and all of its parents'."""
        found = {}
        for name, host in self.bed.hosts.items():
            if host.up and name != "login":
                found[name] = self.bed.root("pgrep", "-u", "alice", "-f", mark, host=name, check=False).stdout.split()
        return found


@pytest.fixture(scope="module")
def own(bed: Bed) -> Iterator[Own]:
    cluster = Own(bed, "own-restarts")
    cluster.stop()
    cluster.run("rm", "-rf", cluster.state)
    cluster.up("--nodelist=c1")
    yield cluster
    cluster.stop()


def lines_of(kind: str, name: str, replicas: int, spec: dict[str, Any], annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations or {}},
                "spec": {"terminationGracePeriodSeconds": 1, **spec},
            },
        },
    }


def sleeper(mark: str, **container: Any) -> dict[str, Any]:
    """Spec of a Pod that sleeps for a number of seconds by which its processes are found."""
    return {"containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", f"sleep {mark} & wait"], **container}]}


class Life:
    """What goes on in the cluster around a restart: a Deployment behind a Service, and Pods that end meanwhile. None of them is on
    the node of the control plane."""

    MARK = "4242421"

    def __init__(self, own: Own, name: str) -> None:
        self.own = own
        self.name = name
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
        avoid = {"slurm-job.hpk.io/flags": f"--exclude={own.report()['host']}"}
        own.apply(lines_of("Deployment", "web", 2, sleeper(self.MARK), avoid), service)
        own.kubectl("rollout", "status", "deployment/web", "--timeout=90s", timeout=100)
        own.wait(lambda: len(own.list("pods", "app=web")) == 2)
        for each, code in (("ends", 5), ("succeeds", 0)):
            own.apply(pod(f"{each}-{name}", "sh", "-c", f"sleep 6; exit {code}", metadata={"annotations": avoid}))
        for each in ("ends", "succeeds"):
            own.wait_phase(f"{each}-{name}", "Running", "Failed", "Succeeded")
        self.before = self._facts()
        self.began = datetime.datetime.now(datetime.timezone.utc)

    def _facts(self) -> dict[str, Any]:
        pods = self.own.list("pods", "app=web")
        return {
            "pids": self.own.pids(self.MARK),
            "pods": {item["metadata"]["uid"]: item["status"]["containerStatuses"][0]["containerID"] for item in pods},
            "restarts": [item["status"]["containerStatuses"][0]["restartCount"] for item in pods],
            "address": self.own.get("service", "web")["spec"]["clusterIP"],
        }

    def renewed(self, name: str, namespace: str) -> bool:
        text = self.own.get("lease", name, namespace)["spec"]["renewTime"]
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) > self.began

    def check(self) -> None:
        own = self.own
        assert sum(len(pids) for pids in self.before["pids"].values()) >= 2
        assert terminated(own.wait_phase(f"ends-{self.name}", "Failed", "Succeeded"))["exitCode"] == 5
        assert terminated(own.wait_phase(f"succeeds-{self.name}", "Failed", "Succeeded"))["exitCode"] == 0
        # what is new runs too: API server, scheduler, controllers and kubelet work together
        own.apply(lines_of("Deployment", "new", 1, sleeper("3131311")))
        own.kubectl("rollout", "status", "deployment/new", "--timeout=90s", timeout=100)
        own.delete("deployment", "new")
        assert self._facts() == self.before
        own.wait(lambda: self.renewed("hpk", "kube-node-lease") and self.renewed("kube-scheduler", "kube-system"))
        (ready,) = [item for item in own.list("nodes")[0]["status"]["conditions"] if item["type"] == "Ready"]
        assert ready["status"] == "True"
        own.wait(lambda: self._endpoints() == sorted(item["status"]["podIP"] for item in own.list("pods", "app=web")))
        for each in ("ends", "succeeds"):
            jobs = own.run("squeue", "--me", "-h", "-t", "all", "-n", f"default/{each}-{self.name}", "-o", "%i %Z").stdout.splitlines()
            assert len([line for line in jobs if own.state in line]) == 1
        own.delete("pod", f"ends-{self.name}", f"succeeds-{self.name}")

    def _endpoints(self) -> list[str]:
        """Ready addresses of the Service. With the nodes' network two Pods may share one."""
        found = []
        for item in self.own.list("endpointslices", "kubernetes.io/service-name=web"):
            for endpoint in item.get("endpoints") or []:
                if endpoint["conditions"]["ready"]:
                    found += endpoint["addresses"]
        return sorted(found)


@pytest.mark.parametrize("part", ["scheduler", "kubelet", "kube-apiserver", "etcd", "kube-controller-manager"])
def test_part_is_killed(own: Own, part: str) -> None:
    life = Life(own, part)
    report = own.report()
    pid = report["components"][part]["pid"]
    own.bed.root("kill", "-KILL", str(pid), host=report["host"])

    def back() -> bool:
        now = own.report()["components"][part]
        return now["phase"] == "ready" and now["pid"] != pid

    own.wait(back, 60)
    life.check()


def test_whole_job_is_killed_and_submitted_again_on_another_node(own: Own) -> None:
    life = Life(own, "job")
    report = own.report()
    other = "c2" if report["host"] != "c2" else "c3"
    # no part of it hears of its end
    own.run("scancel", "--signal=KILL", "--full", report["jobID"])
    own.wait(lambda: not own.run("squeue", "-h", "-j", report["jobID"], check=False).stdout.strip())
    time.sleep(8)  # Pods end while nobody looks
    own.up(f"--nodelist={other}")
    assert own.report()["host"] == other
    life.check()


def test_node_of_the_control_plane_dies(own: Own) -> None:
    own.run("hpk", "down", timeout=150)
    own.up("--nodelist=c2", "--no-requeue")  # Slurm itself would start it again, two minutes later
    life = Life(own, "node")
    job = own.report()["jobID"]
    own.bed.kill_host("c2")
    try:
        life.before["pids"].pop("c2")
        own.wait(lambda: not own.run("squeue", "-h", "-t", "running", "-j", job, check=False).stdout.strip(), 90)
        own.up("--nodelist=c3")
        life.check()
    finally:
        own.bed.start_host("c2")


def test_time_limit_is_survived_by_a_successor(own: Own) -> None:
    own.run("hpk", "down", timeout=150)
    own.up("--time=2", "--nodelist=c1", "--cpus-per-task=1")
    life = Life(own, "limit")
    first = own.report()["jobID"]
    submitted = time.monotonic()
    own.wait(lambda: own.ready_since(first), 150)
    second = own.report()["jobID"]
    assert time.monotonic() - submitted < 120
    life.check()
    state = wait_for(lambda: own.run("squeue", "-h", "-t", "all", "-j", first, "-o", "%T").stdout.strip(), 10)
    assert state == "COMPLETED"  # it left by itself, before its limit
    limit = own.run("squeue", "-h", "-j", second, "-o", "%l|%j|%k").stdout.strip()
    assert limit.startswith("2:00|hpk|hpk control-plane")
    # and again, from the successor to the next
    own.wait(lambda: own.ready_since(second) and own.ready_since(first), 150)
    assert own.pids(Life.MARK) == life.before["pids"]
    own.run("hpk", "down", timeout=150)
    assert not [job for job in own.queue() if own.state in job["comment"]]  # no successor waits in the queue
    own.up()


def test_node_is_lost_and_its_pods_replaced(own: Own) -> None:
    control_plane = own.report()["host"]
    victim = next(name for name in ("c3", "c2", "c1") if name != control_plane)
    spec = sleeper("5151511", resources={"requests": {"cpu": "3"}})
    own.apply(lines_of("Deployment", "spread", 4, spec, {"slurm-job.hpk.io/flags": f"--exclude={control_plane}"}))
    own.kubectl("rollout", "status", "deployment/spread", "--timeout=90s", timeout=100)
    address = own.bed.run("getent", "hosts", victim).stdout.split()[0]
    lost = {item["metadata"]["uid"] for item in own.list("pods", "app=spread") if item["status"]["hostIP"] == address}
    assert lost
    own.bed.kill_host(victim)
    try:
        ids = own.run("squeue", "--me", "-h", "-t", "running", "-w", victim, "-o", "%i").stdout.split()
        wait_for(
            lambda: not own.run("squeue", "--me", "-h", "-t", "running", "-j", ",".join(ids), check=False).stdout.strip(), 90, pace=0.2
        )
        noticed = time.monotonic()

        def replaced() -> bool:
            pods = own.list("pods", "app=spread")
            ended = {item["metadata"]["uid"]: item["status"] for item in pods if item["metadata"]["uid"] in lost}
            told = all(
                item["phase"] == "Failed"
                and item["reason"] == "NodeFail"
                and any(each["type"] == "DisruptionTarget" and each["status"] == "True" for each in item["conditions"])
                for item in ended.values()
            )
            alive = [item for item in pods if item["status"].get("phase") in ("Pending", "Running")]
            return len(ended) == len(lost) and told and len(alive) == 4

        wait_for(replaced, 30, own.explain, pace=0.1)
        assert time.monotonic() - noticed <= REPLACED_SECONDS
    finally:
        own.bed.start_host(victim)
    own.kubectl("rollout", "status", "deployment/spread", "--timeout=90s", timeout=100)
    own.delete("deployment", "spread")


def test_preempted_pod_is_replaced_and_its_job_not_requeued(own: Own) -> None:
    where = next(name for name in ("c3", "c2", "c1") if name != own.report()["host"])
    flags = {"slurm-job.hpk.io/flags": f"--partition=low --exclusive --nodelist={where}"}
    own.apply(lines_of("Deployment", "cheap", 1, sleeper("6161611"), flags))
    own.kubectl("rollout", "status", "deployment/cheap", "--timeout=90s", timeout=100)
    (first,) = own.list("pods", "app=cheap")
    strong = own.run("sbatch", "--parsable", "-p", "high", "--exclusive", f"--nodelist={where}", "-o", "/dev/null", "--wrap=sleep 25")
    try:
        name = first["metadata"]["name"]
        failed = own.wait_phase(name, "Failed", timeout=90)
        (condition,) = [item for item in failed["status"]["conditions"] if item["type"] == "DisruptionTarget"]
        assert (condition["status"], condition["reason"]) == ("True", "PreemptionByScheduler")
        own.wait(lambda: [item for item in own.list("pods", "app=cheap") if item["status"].get("phase") == "Pending"], 15)
        states = own.run("squeue", "--me", "-h", "-t", "all", "-n", f"default/{name}", "-o", "%T").stdout.split()
        assert states in (["PREEMPTED"], ["FAILED"])  # one job; it may have left before Slurm ended it
    finally:
        own.run("scancel", strong.stdout.strip())
    own.kubectl("rollout", "status", "deployment/cheap", "--timeout=120s", timeout=130)
    own.delete("deployment", "cheap")
