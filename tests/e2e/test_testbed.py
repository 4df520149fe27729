"""The test bed is what it claims to be: hosts, Slurm with accounting, Apptainer with the registry, privacy, power failures, OOM kills."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests import testbed
from tests.testbed import cgroups, commands, images, layout, oci, registry

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bed() -> Iterator[testbed.Bed]:
    """A small bed of its own, since these tests cut the power."""
    bed = testbed.Bed("selftest")
    bed.up(nodes=3)
    yield bed
    bed.down(wipe=True)


def _submit(bed: testbed.Bed, *argv: str, script: str) -> str:
    return bed.run("sbatch", "--parsable", "--output=/dev/null", *argv, stdin=f"#!/bin/sh\n{script}\n").stdout.strip()


def _wait_for_state(bed: testbed.Bed, job: str, wanted: str, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while (state := bed.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").stdout.strip()) != wanted:
        assert time.monotonic() < end, f"job {job} is {state}, not {wanted}, after {timeout} s"
        time.sleep(0.1)


def test_all_nodes_are_idle_and_declare_more_than_the_machine_has(bed: testbed.Bed) -> None:
    nodes = bed.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T %c %m %G").stdout.splitlines()
    assert nodes == [f"{node} idle 8 16000 gpu:a100:2" for node in ("c1", "c2", "c3")]


def test_srun_runs_on_three_hosts_with_names_and_addresses_of_their_own(bed: testbed.Bed) -> None:
    out = bed.run("srun", "-N3", "sh", "-c", "echo $(hostname) $(hostname -I)").stdout
    assert sorted(out.splitlines()) == ["c1 10.77.0.11", "c2 10.77.0.12", "c3 10.77.0.13"]


def test_accounting_keeps_the_comment(bed: testbed.Bed) -> None:
    job = _submit(bed, "--comment=hpk uid=5f0c", "--job-name=default/web", script="true")
    _wait_for_state(bed, job, "COMPLETED")
    end = time.monotonic() + 20
    wanted = "default/web|COMPLETED|hpk uid=5f0c|research"
    while (out := bed.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "JobName%50,State,Comment%50,Account").stdout.strip()) != wanted:
        assert time.monotonic() < end, out
        time.sleep(0.2)


def test_exit_code_output_and_input_pass_through(bed: testbed.Bed) -> None:
    done = bed.run("sh", "-c", "cat; pwd; exit 7", user="bob", stdin="in\n", check=False)
    assert (done.returncode, done.stdout) == (7, "in\n/home/bob\n")


def test_nothing_of_the_callers_environment_leaks_in(bed: testbed.Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "1")
    names = {line.partition("=")[0] for line in bed.run("env").stdout.splitlines()}
    assert names - {"HPK_CONTROL_PLANE_IMAGE", "TERM"} == {"HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"}


def test_bob_cannot_read_alices_home(bed: testbed.Bed) -> None:
    bed.run("sh", "-c", "echo secret > mine; chmod 644 mine")
    done = bed.run("cat", "/home/alice/mine", user="bob", check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_home_is_shared_and_tmp_is_not(bed: testbed.Bed) -> None:
    bed.run("sh", "-c", "echo shared > file; echo own > /tmp/file")
    done = bed.run("cat", "file", "/tmp/file", host="c1", check=False)
    assert done.stdout == "shared\n"
    assert "/tmp/file: No such file" in done.stderr


def test_the_tree_is_there_and_cannot_be_changed(bed: testbed.Bed) -> None:
    assert bed.run("test", "-e", "hpk/pyproject.toml").returncode == 0
    assert "Read-only file system" in bed.root("touch", "/home/alice/hpk/x", check=False).stderr
    assert bed.run("hpk", "--version").stdout.startswith("hpk ")


def test_there_is_no_way_out(bed: testbed.Bed) -> None:
    assert "default" not in bed.root("ip", "route", host="c1").stdout
    assert bed.run("ip", "-o", "link", host="c1").stdout.count("\n") == 2  # lo and eth0


def test_users_have_no_subordinate_ids(bed: testbed.Bed) -> None:
    for path in ("/etc/subuid", "/etc/subgid"):
        assert not any(line.startswith(layout.USERS) for line in bed.root("cat", path).stdout.splitlines())


@pytest.mark.parametrize("reference", sorted(images.REFERENCES))
def test_the_registry_has_the_image(bed: testbed.Bed, reference: str) -> None:
    inspected = bed.run("skopeo", "inspect", "--tls-verify=false", "--format={{.Os}}", f"docker://{layout.REGISTRY}/{reference}", host="c2")
    assert inspected.stdout.strip() == "linux"


def test_the_private_registry_wants_a_password(bed: testbed.Bed) -> None:
    image = "docker://registry:5001/busybox:latest"
    refused = bed.run("skopeo", "inspect", "--tls-verify=false", image, check=False)
    assert "unauthorized" in refused.stderr
    credentials = f"--creds={registry.PULLER}:{registry.PASSWORD}"
    assert bed.run("skopeo", "inspect", "--tls-verify=false", credentials, image).returncode == 0


def test_alice_runs_a_container_from_the_registry_in_a_job(bed: testbed.Bed) -> None:
    command = [
        "apptainer",
        "exec",
        "--no-https",
        "--contain",
        "docker://registry:5000/busybox:latest",
        "sh",
        "-c",
        "busybox | head -1; id -un",
    ]
    out = bed.run("srun", "-n1", "-w", "c2", *command, timeout=120).stdout
    assert out.startswith("BusyBox v")
    assert out.endswith("alice\n")


def test_a_job_that_passes_its_memory_is_killed_by_the_kernel(bed: testbed.Bed) -> None:
    job = _submit(bed, "--mem=50M", script="exec /usr/bin/python3 -c 'b = bytearray(200 << 20)'")
    _wait_for_state(bed, job, "OUT_OF_MEMORY")


def test_a_high_job_preempts_a_low_one(bed: testbed.Bed) -> None:
    low = _submit(bed, "-p", "low", "-w", "c3", "--exclusive", "--no-requeue", script="exec sleep 300")
    _wait_for_state(bed, low, "RUNNING")
    high = _submit(bed, "-p", "high", "-w", "c3", "--exclusive", script="exec sleep 300")
    _wait_for_state(bed, low, "PREEMPTED", timeout=60)
    _wait_for_state(bed, high, "RUNNING")
    bed.run("scancel", high)


def test_gpus_are_counted(bed: testbed.Bed) -> None:
    out = bed.run("srun", "--gres=gpu:a100:1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES").stdout.strip()
    assert out in ("0", "1")


def test_power_failure_takes_all_of_a_host_and_it_comes_back(bed: testbed.Bed) -> None:
    job = _submit(bed, "-w", "c2", "--no-requeue", script="exec sleep 300")
    _wait_for_state(bed, job, "RUNNING")
    bed.root("touch", "/tmp/gone", host="c2")
    bed.kill_host("c2")
    assert bed.status()["c2"].startswith("off")
    with pytest.raises(testbed.TestbedError, match="host c2 is off"):
        bed.run("true", host="c2")
    _wait_for_state(bed, job, "NODE_FAIL", timeout=60)
    bed.start_host("c2")
    assert bed.root("test", "-e", "/tmp/gone", host="c2", check=False).returncode == 1
    assert bed.run("srun", "-w", "c2", "hostname").stdout == "c2\n"


def test_up_switches_a_dead_host_on_and_otherwise_does_nothing(bed: testbed.Bed) -> None:
    pids = {name: machine.pid for name, machine in bed.hosts.items()}
    began = time.monotonic()
    bed.up()
    assert time.monotonic() - began < 1
    assert {name: machine.pid for name, machine in bed.hosts.items()} == pids
    bed.kill_host("c3")
    bed.up()
    assert bed.run("srun", "-w", "c3", "hostname").stdout == "c3\n"


def test_a_time_limit_ends_what_was_started_in_the_host(bed: testbed.Bed) -> None:
    with pytest.raises(testbed.TestbedError, match=r"no end after 0\.5 s"):
        bed.run("sleep", "4711", timeout=0.5)
    assert bed.root("pgrep", "-f", "^sleep 4711", check=False).returncode == 1


def test_up_after_a_crash_and_down_leave_nothing_behind() -> None:
    bed = testbed.Bed("selftest-crash")
    bed.up(nodes=1)
    inits = [machine.pid for machine in bed.hosts.values()]
    os.unlink(f"{bed.layout.state}/up.json")  # as if `up` had died before it was done
    assert bed.nodes == []
    bed.up(nodes=1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in inits)
    inits = [machine.pid for machine in bed.hosts.values()]
    bed.down()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in inits)
    assert not os.path.exists(f"/run/netns/{bed.layout.netns}")
    assert cgroups.leftovers(bed.layout.cgroup("")) == set()
    assert bed.layout.state not in commands.read("/proc/mounts")
    bed.down(wipe=True)
    assert not os.path.exists(bed.layout.state)


def test_an_image_of_a_tests_own(bed: testbed.Bed) -> None:
    script = oci.File("hello.sh", b'#!/bin/sh\necho "$GREETING"\n', 0o755)
    bed.push("mine/hello:1", files=[script], config={"Env": ["GREETING=hello there"], "Cmd": ["/hello.sh"]})
    assert bed.run("apptainer", "run", "--no-https", "docker://registry:5000/mine/hello:1").stdout == "hello there\n"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda bed: bed.up(nodes=5), "--nodes: the test bed is up with 3"),
        (lambda bed: bed.up(nodes=0), "--nodes: 0 is not between"),
        (lambda bed: bed.run("true", host="c9"), "--host: no host 'c9'"),
        (lambda bed: bed.run("true", user="carol"), "--user: 'carol' is none of"),
        (lambda bed: testbed.Bed("not-there").run("true"), "is down"),
    ],
)
def test_bad_input(bed: testbed.Bed, call, text: str) -> None:
    with pytest.raises(testbed.TestbedError, match=text):
        call(bed)
