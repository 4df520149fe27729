"""What users get wrong: each case ends with words that name what is wrong, and nothing half-made."""

from __future__ import annotations

import time

import pytest

from tests.e2e.cluster import Cluster, pod, terminated

pytestmark = pytest.mark.e2e


def waiting(found: dict) -> dict:
    return found["status"]["containerStatuses"][0]["state"].get("waiting", {})


def reasons(cluster: Cluster, name: str) -> set[str]:
    return {event["reason"] for event in cluster.events(name)}


def wait_waiting(cluster: Cluster, name: str, *expected: str) -> dict:
    def reached() -> dict | None:
        found = cluster.get("pod", name)
        return found if found["status"].get("containerStatuses") and waiting(found).get("reason") in expected else None

    found = cluster.wait(reached, 60)
    assert found["status"]["phase"] == "Pending"
    return waiting(found)


def no_job(cluster: Cluster, name: str) -> bool:
    return not [job for job in cluster.queue() if job["name"] == f"default/{name}"]


def test_missing_image(alice: Cluster) -> None:
    alice.apply(pod("no-image", "true", image="no-such-image:1"))
    state = wait_waiting(alice, "no-image", "ErrImagePull", "ImagePullBackOff")
    assert "no-such-image:1" in state["message"]
    alice.wait(lambda: {"Pulling", "Failed", "BackOff"} <= reasons(alice, "no-image"))
    assert no_job(alice, "no-image")
    alice.delete("pod", "no-image")


def test_bad_image_reference(alice: Cluster) -> None:
    alice.apply(pod("bad-ref", "true", image="UPPER//case::x"))
    wait_waiting(alice, "bad-ref", "InvalidImageName")
    alice.delete("pod", "bad-ref")


def test_image_never_pulled(alice: Cluster) -> None:
    alice.apply(pod("never", "true", image="never-pulled:1", container={"imagePullPolicy": "Never"}))
    wait_waiting(alice, "never", "ErrImageNeverPull")
    alice.delete("pod", "never")


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("unknown-flag", "--no-such-flag=1", "no-such-flag"),
        ("bad-partition", "--partition=moon", "partition"),
        ("bad-quoting", "--comment='open", "slurm-job.hpk.io/flags"),
        ("not-a-flag", "rm -rf x", "slurm-job.hpk.io/flags"),
        ("owned-flag", "--comment=mine", "--comment"),
        ("newline", "--time=5\n#SBATCH --partition=high", "slurm-job.hpk.io/flags"),
    ],
)
def test_bad_flag_in_the_annotation(alice: Cluster, name: str, flags: str, words: str) -> None:
    alice.apply(pod(name, "true", metadata={"annotations": {"slurm-job.hpk.io/flags": flags}}))
    failed = alice.wait_phase(name, "Failed")
    assert failed["status"]["reason"]
    assert words in failed["status"]["message"]
    assert no_job(alice, name)
    alice.delete("pod", name)


def test_shell_metacharacters_are_never_evaluated(alice: Cluster) -> None:
    target = f"{alice.home}/owned"
    for number, text in enumerate(
        (f"--job-name=$(touch {target})", f"--export=X=`touch {target}`", f"--time=5;touch {target}", f'--mail-user="$(touch {target})"')
    ):
        name = f"meta-{number}"
        words = {"slurm-job.hpk.io/flags": text}
        alice.apply(pod(name, "sh", "-c", f"echo '$(touch {target})' \"`echo x`\"", metadata={"annotations": words}))
        alice.wait_phase(name, "Failed", "Succeeded")
        alice.delete("pod", name)
    assert alice.run("test", "-e", target, check=False).returncode != 0


def test_too_large_for_any_node(alice: Cluster) -> None:
    alice.apply(pod("huge", "true", container={"resources": {"requests": {"cpu": "4000"}}}))
    alice.wait(lambda: alice.get("pod", "huge")["status"].get("phase") == "Failed" or alice.events("huge"), 60)
    failed = alice.wait_phase("huge", "Failed")
    assert failed["status"]["message"]
    assert no_job(alice, "huge")
    alice.delete("pod", "huge")


def test_names_at_their_length_limits(alice: Cluster) -> None:
    namespace = "n" * 63
    name = ".".join("p" * 61 for _ in range(4))[:253]
    container = "c" * 63
    long = pod(name, "sh", "-c", "hostname")
    long["metadata"]["namespace"] = namespace
    long["spec"]["containers"][0]["name"] = container
    alice.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    alice.wait(lambda: alice.exists("serviceaccount", "default", namespace))
    alice.apply(long)
    alice.wait_phase(name, "Succeeded", namespace=namespace)
    # upstream cuts the hostname at 63 characters and never ends it with a dot or dash
    assert alice.logs(name, namespace=namespace).strip() == name[:63].rstrip("-.")
    alice.delete("namespace", namespace)


def test_missing_config_map_starts_when_it_appears(alice: Cluster) -> None:
    volumes = [{"name": "settings", "configMap": {"name": "later"}}]
    mounts = {"volumeMounts": [{"name": "settings", "mountPath": "/settings"}]}
    alice.apply(pod("waits", "cat", "/settings/key", volumes=volumes, container=mounts))
    alice.wait(lambda: "FailedMount" in reasons(alice, "waits"))
    assert wait_waiting(alice, "waits", "ContainerCreating")
    assert no_job(alice, "waits")
    alice.kubectl("create", "configmap", "later", "--from-literal=key=value")
    alice.wait_phase("waits", "Succeeded")
    assert alice.logs("waits") == "value"
    alice.delete("pod/waits", "configmap/later")


def test_missing_secret_in_env(alice: Cluster) -> None:
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "later", "key": "x"}}}]
    alice.apply(pod("secretless", "sh", "-c", "echo $X", container={"env": env}))
    state = wait_waiting(alice, "secretless", "CreateContainerConfigError")
    assert 'secret "later" not found' in state["message"]
    alice.kubectl("create", "secret", "generic", "later", "--from-literal=x=found")
    alice.wait_phase("secretless", "Succeeded", timeout=90)
    assert alice.logs("secretless") == "found\n"
    alice.delete("pod/secretless", "secret/later")


@pytest.mark.parametrize(
    ("name", "spec", "field"),
    [
        ("privileged", {"container": {"securityContext": {"privileged": True}}}, "privileged"),
        ("host-pid", {"hostPID": True}, "hostPID"),
    ],
)
def test_what_needs_privileges_is_refused_by_name(alice: Cluster, name: str, spec: dict, field: str) -> None:
    alice.apply(pod(name, "true", **spec))
    failed = alice.wait_phase(name, "Failed")
    assert field in failed["status"]["message"]
    assert failed["status"]["reason"]
    assert failed["status"]["reason"] in reasons(alice, name)
    assert no_job(alice, name)
    alice.delete("pod", name)


def test_no_node_fits(alice: Cluster) -> None:
    alice.apply(pod("picky", "true", nodeSelector={"colour": "green"}))
    alice.wait(lambda: "FailedScheduling" in reasons(alice, "picky"))
    found = alice.get("pod", "picky")
    assert found["status"]["phase"] == "Pending"
    assert not found["spec"].get("nodeName")
    node = alice.list("nodes")[0]["metadata"]["name"]
    alice.kubectl("label", "node", node, "colour=green")
    alice.wait_phase("picky", "Succeeded")
    alice.delete("pod", "picky")
    alice.kubectl("label", "node", node, "colour-")


def test_gated_pod_waits(alice: Cluster) -> None:
    alice.apply(pod("gated", "true", schedulingGates=[{"name": "example.org/gate"}]))
    time.sleep(3)
    found = alice.get("pod", "gated")
    assert not found["spec"].get("nodeName")
    alice.kubectl("patch", "pod", "gated", "--type=json", '-p=[{"op":"remove","path":"/spec/schedulingGates"}]')
    alice.wait_phase("gated", "Succeeded")
    alice.delete("pod", "gated")


def test_crash_loop_backs_off(alice: Cluster) -> None:
    alice.apply(pod("crash", "sh", "-c", "echo again; exit 3", restartPolicy="Always", terminationGracePeriodSeconds=1))

    def looping() -> dict | None:
        found = alice.get("pod", "crash")
        statuses = found["status"].get("containerStatuses") or [{}]
        return found if statuses[0].get("restartCount", 0) >= 1 and waiting(found).get("reason") == "CrashLoopBackOff" else None

    found = alice.wait(looping, 90)
    assert found["status"]["phase"] == "Running"
    assert found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 3
    alice.delete("pod", "crash")


def test_control_plane_twice_over_one_state_directory(alice: Cluster) -> None:
    second = alice.run(
        "sbatch",
        "--parsable",
        "--wait",
        "--output",
        f"{alice.home}/second.out",
        f"{alice.home}/hpk/slurm/hpk.sbatch",
        check=False,
        timeout=90,
    )
    assert second.returncode != 0
    words = alice.run("cat", f"{alice.home}/second.out").stdout
    assert "hpk: error:" in words
    assert "Traceback" not in words
    assert alice.kubectl("get", "nodes")


def test_state_directory_of_another_version(alice: Cluster) -> None:
    alice.run("bash", "-c", "mkdir -m 700 -p ~/other && echo 999 > ~/other/version")
    done = alice.run("env", f"HPK_HOME={alice.home}/other", "hpk", "control-plane", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hpk: error:")
    assert "999" in done.stderr
    assert alice.run("ls", f"{alice.home}/other").stdout.split() == ["version"]


@pytest.mark.parametrize("missing", ["apptainer", "sbatch"])
def test_tool_missing_on_path(alice: Cluster, missing: str) -> None:
    """A PATH that has all but the one program."""
    script = f"""
mkdir -p ~/path-{missing}; for folder in ${{PATH//:/ }}; do ln -sf "$folder"/* ~/path-{missing}/ 2>/dev/null; done
rm -f ~/path-{missing}/{missing}; [ {missing} = apptainer ] && rm -f ~/path-{missing}/singularity
export PATH=~/path-{missing} HPK_HOME=~/fresh-{missing}
{"hpk up" if missing == "sbatch" else "hpk control-plane"}
"""
    done = alice.run("bash", "-c", script, check=False)
    assert done.returncode == 1
    assert "hpk: error:" in done.stderr
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_exit_code_255_is_not_a_start_error(alice: Cluster) -> None:
    alice.apply(pod("code-255", "sh", "-c", "exit 255"))
    failed = alice.wait_phase("code-255", "Failed")
    assert (terminated(failed)["exitCode"], terminated(failed)["reason"]) == (255, "Error")
    alice.delete("pod", "code-255")
