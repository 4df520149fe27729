"""Ends of Pods that nobody planned, and restarts of what watches them: the job's end is told truly, and no Pod has two jobs."""

from __future__ import annotations

import secrets
import time

import pytest

from tests.e2e.cluster import Cluster, pod, terminated, wait_for

pytestmark = pytest.mark.e2e

RUN = secrets.token_hex(2)  # a bed that is kept remembers the jobs of earlier runs by name
SLEEPER = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")


def jobs_of(cluster: Cluster, name: str) -> list[dict[str, str]]:
    """All jobs that the Pod ever had, as accounting and the queue know them."""
    lines = cluster.run("squeue", "--me", "-h", "-t", "all", "-o", "%i|%j|%T|%B").stdout.splitlines()
    found = [dict(zip(("id", "name", "state", "host"), line.split("|"), strict=False)) for line in lines]
    return [job for job in found if job["name"] == f"default/{name}"]


def condition(found: dict, kind: str) -> dict:
    return next((item for item in found["status"]["conditions"] if item["type"] == kind), {})


def told(cluster: Cluster, name: str, words: str) -> dict | None:
    """The Pod, once the condition that tells of Slurm's queue has these words."""
    found = cluster.get("pod", name)
    return found if words in condition(found, "PodReadyToStartContainers").get("message", "") else None


def kubelet(cluster: Cluster) -> tuple[str, str]:
    """Host and pid of the user's kubelet."""
    for host in cluster.bed.nodes:
        found = cluster.bed.root("pgrep", "-u", cluster.user, "-f", "--", "-m hpk kubelet", host=host, check=False).stdout.split()
        if found:
            return host, found[0]
    raise AssertionError("no kubelet runs")


def kill_kubelet(cluster: Cluster) -> None:
    host, pid = kubelet(cluster)
    cluster.bed.root("kill", "-9", pid, host=host)


def test_scancel_outside_of_kubernetes(alice: Cluster) -> None:
    alice.apply(pod(f"cancelled-{RUN}", *SLEEPER))
    alice.wait_phase(f"cancelled-{RUN}", "Running")
    (job,) = jobs_of(alice, f"cancelled-{RUN}")
    alice.run("scancel", job["id"])
    failed = alice.wait_phase(f"cancelled-{RUN}", "Failed", timeout=90)
    assert failed["status"]["reason"] == "SlurmJobCancelled"
    assert job["id"] in failed["status"]["message"]
    alice.delete("pod", f"cancelled-{RUN}")


def test_time_limit_of_slurm(alice: Cluster) -> None:
    flags = {"slurm-job.hpk.io/flags": "--time=1"}
    alice.apply(pod(f"short-lived-{RUN}", *SLEEPER, metadata={"annotations": flags}, terminationGracePeriodSeconds=2))
    failed = alice.wait_phase(f"short-lived-{RUN}", "Failed", timeout=150)
    assert failed["status"]["reason"] == "DeadlineExceeded"
    alice.delete("pod", f"short-lived-{RUN}")


def test_preemption(alice: Cluster) -> None:
    low = {"slurm-job.hpk.io/flags": "--partition=lowc --exclusive --nodelist=c3"}
    alice.apply(pod(f"victim-{RUN}", *SLEEPER, metadata={"annotations": low}, terminationGracePeriodSeconds=2))
    alice.wait_phase(f"victim-{RUN}", "Running")
    other = alice.run("sbatch", "--parsable", "-p", "high", "--exclusive", "--nodelist=c3", "--wrap=sleep 20").stdout.strip()
    failed = alice.wait_phase(f"victim-{RUN}", "Failed", timeout=120)
    assert condition(failed, "DisruptionTarget")["reason"] == "PreemptionByScheduler"
    assert failed["status"]["reason"] == "Preempted"
    alice.run("scancel", other)
    assert len(jobs_of(alice, f"victim-{RUN}")) == 1
    alice.delete("pod", f"victim-{RUN}")


def test_node_failure(alice: Cluster) -> None:
    control_plane, _ = kubelet(alice)
    victim = next(host for host in ("c3", "c2", "c1") if host != control_plane)
    flags = {"slurm-job.hpk.io/flags": f"--nodelist={victim}"}
    alice.apply(pod(f"on-dead-node-{RUN}", *SLEEPER, metadata={"annotations": flags}))
    alice.wait_phase(f"on-dead-node-{RUN}", "Running")
    alice.bed.kill_host(victim)
    try:
        failed = alice.wait_phase(f"on-dead-node-{RUN}", "Failed", timeout=120)
        assert failed["status"]["reason"] == "NodeFail"
        assert condition(failed, "DisruptionTarget")["status"] == "True"
        end = terminated(failed)
        assert (end["exitCode"], end["reason"]) == (137, "ContainerStatusUnknown")
        alice.delete("pod", f"on-dead-node-{RUN}")
    finally:
        alice.bed.start_host(victim)


def test_force_deletion_ends_the_job(alice: Cluster) -> None:
    alice.apply(pod(f"forced-{RUN}", *SLEEPER))
    alice.wait_phase(f"forced-{RUN}", "Running")
    alice.delete("pod", f"forced-{RUN}", "--force", "--grace-period=0")
    alice.wait(lambda: all(job["state"] not in ("PENDING", "RUNNING", "COMPLETING") for job in jobs_of(alice, f"forced-{RUN}")), 30)


def test_deletion_while_queued(alice: Cluster) -> None:
    flags = {"slurm-job.hpk.io/flags": "--hold"}
    alice.apply(pod(f"queued-{RUN}", "true", metadata={"annotations": flags}))
    alice.wait(lambda: jobs_of(alice, f"queued-{RUN}"))
    begin = time.monotonic()
    alice.delete("pod", f"queued-{RUN}")
    assert time.monotonic() - begin < 10
    assert {job["state"] for job in jobs_of(alice, f"queued-{RUN}")} == {"CANCELLED"}


def test_kubelet_is_killed_while_pods_run_and_end(alice: Cluster) -> None:
    alice.apply(
        pod(f"stays-{RUN}", "sh", "-c", "echo $$; sleep 1000"),
        pod(f"ends-meanwhile-{RUN}", "sh", "-c", "sleep 8; exit 9"),
        pod(f"held-meanwhile-{RUN}", "true", metadata={"annotations": {"slurm-job.hpk.io/flags": "--hold"}}),
    )
    for name in (f"stays-{RUN}", f"ends-meanwhile-{RUN}"):
        alice.wait_phase(name, "Running")
    alice.wait(lambda: jobs_of(alice, f"held-meanwhile-{RUN}"))
    before = alice.get("pod", f"stays-{RUN}")["status"]["containerStatuses"][0]
    time.sleep(3)  # Events of the last seconds before a crash may be told twice
    kill_kubelet(alice)
    failed = alice.wait_phase(f"ends-meanwhile-{RUN}", "Failed", timeout=60)
    assert terminated(failed)["exitCode"] == 9
    alice.run("scontrol", "release", jobs_of(alice, f"held-meanwhile-{RUN}")[0]["id"])
    alice.wait_phase(f"held-meanwhile-{RUN}", "Succeeded", timeout=60)
    after = alice.get("pod", f"stays-{RUN}")["status"]["containerStatuses"][0]
    assert (after["state"], after["restartCount"]) == (before["state"], 0)
    for name in (f"stays-{RUN}", f"ends-meanwhile-{RUN}", f"held-meanwhile-{RUN}"):
        assert len(jobs_of(alice, name)) == 1
    started = [event for event in alice.events(f"stays-{RUN}") if event["reason"] == "Started"]
    assert len(started) == 1
    alice.delete("pod", f"stays-{RUN}", f"ends-meanwhile-{RUN}", f"held-meanwhile-{RUN}", "--grace-period=1")


def test_pods_that_are_deleted_by_force_while_the_kubelet_is_away(alice: Cluster) -> None:
    alice.apply(pod(f"orphan-{RUN}", *SLEEPER))
    found = alice.wait_phase(f"orphan-{RUN}", "Running")
    host, pid = kubelet(alice)
    alice.bed.root("kill", "-STOP", pid, host=host)
    alice.delete("pod", f"orphan-{RUN}", "--force", "--grace-period=0")
    alice.bed.root("kill", "-9", pid, host=host)
    alice.wait(lambda: all(job["state"] != "RUNNING" for job in jobs_of(alice, f"orphan-{RUN}")), 60)
    folder = f"{alice.home}/.hpk/pods/default_orphan-{RUN}_{found['metadata']['uid']}"
    alice.wait(lambda: alice.run("test", "-e", folder, check=False).returncode != 0, 60)


def test_slurmctld_hangs_while_pods_are_created(alice: Cluster) -> None:
    """The requests of sbatch wait in the controller's socket, time out for us, and may become jobs all the same."""
    alice.bed.root("pkill", "-STOP", "slurmctld")
    try:
        alice.apply(*(pod(f"patient-{number}-{RUN}", "true") for number in range(3)))
        time.sleep(20)
        assert {alice.get("pod", f"patient-{number}-{RUN}")["status"]["phase"] for number in range(3)} == {"Pending"}
    finally:
        alice.bed.root("pkill", "-CONT", "slurmctld")
    for number in range(3):
        alice.wait_phase(f"patient-{number}-{RUN}", "Succeeded", timeout=120)
    wait_for(lambda: all(len(jobs_of(alice, f"patient-{number}-{RUN}")) == 1 for number in range(3)), 10)
    for number in range(3):
        alice.delete("pod", f"patient-{number}-{RUN}")


def test_slurmctld_is_away_while_pods_run(alice: Cluster) -> None:
    alice.apply(pod(f"survivor-{RUN}", "sh", "-c", "sleep 15; exit 4"), pod(f"longer-{RUN}", *SLEEPER))
    alice.wait_phase(f"survivor-{RUN}", "Running")
    alice.wait_phase(f"longer-{RUN}", "Running")
    alice.bed.root("scontrol", "shutdown", "slurmctld")
    try:
        failed = alice.wait_phase(f"survivor-{RUN}", "Failed", timeout=60)  # the supervisor tells, Slurm cannot
        assert terminated(failed)["exitCode"] == 4
        assert alice.get("pod", f"longer-{RUN}")["status"]["phase"] == "Running"
        alice.apply(pod(f"newcomer-{RUN}", "true"))
        alice.wait(lambda: "SlurmUnreachable" in {event["reason"] for event in alice.events(f"newcomer-{RUN}")}, 60)
        assert alice.get("pod", f"newcomer-{RUN}")["status"]["phase"] == "Pending"
    finally:
        alice.bed.root("slurmctld")
    alice.wait(lambda: alice.run("squeue", "--me", check=False).returncode == 0)
    time.sleep(3)
    assert alice.get("pod", f"longer-{RUN}")["status"]["phase"] == "Running"
    alice.wait_phase(f"newcomer-{RUN}", "Succeeded", timeout=120)
    assert len(jobs_of(alice, f"newcomer-{RUN}")) == 1
    alice.delete("pod", f"newcomer-{RUN}", f"survivor-{RUN}", f"longer-{RUN}", "--grace-period=1")


def test_refusal_that_may_pass_leaves_the_pod_pending(alice: Cluster) -> None:
    alice.bed.root("scontrol", "update", "PartitionName=short", "State=INACTIVE")
    try:
        flags = {"slurm-job.hpk.io/flags": "--partition=short"}
        alice.apply(pod(f"unlucky-{RUN}", "true", metadata={"annotations": flags}))
        alice.wait(lambda: "SlurmRefused" in {event["reason"] for event in alice.events(f"unlucky-{RUN}")})
        found = alice.wait(lambda: told(alice, f"unlucky-{RUN}", "partition not available"))
        assert found["status"]["phase"] == "Pending"
    finally:
        alice.bed.root("scontrol", "update", "PartitionName=short", "State=UP")
    alice.wait_phase(f"unlucky-{RUN}", "Succeeded", timeout=60)
    alice.delete("pod", f"unlucky-{RUN}")


def test_job_that_can_never_run_tells_why(alice: Cluster) -> None:
    flags = {"slurm-job.hpk.io/flags": "--partition=short --time=2-0"}
    alice.apply(pod(f"endless-{RUN}", "true", metadata={"annotations": flags}))
    found = alice.wait(lambda: told(alice, f"endless-{RUN}", "PartitionTimeLimit"))
    assert found["status"]["phase"] == "Pending"
    warned = alice.wait(lambda: [event for event in alice.events(f"endless-{RUN}") if "PartitionTimeLimit" in event["message"]])
    assert (warned[0]["type"], warned[0]["reason"]) == ("Warning", "SlurmQueued")
    alice.delete("pod", f"endless-{RUN}")
