"""The job script: golden texts, shellcheck over each of them, and that nothing of the user's is ever evaluated."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpk import errors
from hpk.kubelet import podplan, script

POD_DIR = "/home/alice/.hpk/pods/default_web_4a1c"


def container(name: str = "main", **fields: object) -> podplan.ContainerPlan:
    return podplan.ContainerPlan(
        **{  # type: ignore[arg-type]
            "name": name,
            "image": "docker.io/library/busybox:1.36",
            "image_id": "docker.io/library/busybox@sha256:0123",
            "image_path": "/home/alice/.hpk/images/sha256-0123.sif",
            "command": ("sleep", "10"),
            "env": {"PATH": "/bin", "HOME": "/root"},
            **fields,
        }
    )


def plan(*containers: podplan.ContainerPlan, job: dict[str, object] | None = None, **fields: object) -> podplan.PodPlan:
    return podplan.PodPlan(
        **{  # type: ignore[arg-type]
            "uid": "4a1c",
            "namespace": "default",
            "name": "web",
            "node_name": "hpk",
            "pod_dir": POD_DIR,
            "job": podplan.SlurmJob("default/web", "hpk uid=4a1c", **(job or {})),  # type: ignore[arg-type]
            "containers": containers or (container(),),
            **fields,
        }
    )


NASTY = "a b'c\"d $(touch /tmp/evil) `id` ; rm -rf ~ \\ \n # {{ x }} %j ! *"
PLANS = {
    "simple": plan(),
    "resources": plan(
        container(gpu="nvidia"),
        job={
            "cpus": 4,
            "memory_mb": 2048,
            "gres": ("gpu:a100:2",),
            "time_limit": 90,
            "partition": "gpu",
            "account": "physics",
            "qos": "normal",
            "constraint": "a|b",
            "node_list": "n1",
            "flags": ("--ntasks=8", "--constraint=x y", "--mail-user=a#b"),
        },
        termination_grace_period=60,
    ),
    "several": plan(
        container(
            "app",
            mounts=(podplan.Mount(podplan.SCRATCH + "/volumes/data", "/data"), podplan.Mount(f"{POD_DIR}/volumes/conf", "/etc/conf", True)),
        ),
        container("log-reader", read_only_root=True, working_dir="/var/log"),
        init_containers=(container("prepare"), container("proxy", restart_policy="Always")),
        job_volumes=(podplan.JobVolume("emptyDir", "data", path=podplan.SCRATCH + "/volumes/data"),),
    ),
    "addresses": plan(
        container(command=("app", f"--ip={podplan.POD_IP}"), env={"PATH": "/bin", "IP": podplan.POD_IP, "HOST": podplan.HOST_IP})
    ),
    "odd-environment": plan(container(env={"PATH": "/bin", "discovery.type": "single-node"})),
    "mpi-srun": plan(container(mpi_flags=("--mpi=pmix", "-n", "8")), job={"flags": ("--ntasks=8", "--nodes=2")}),
    "mpi-mpirun": plan(container(mpi_flags=("mpirun", "-np", "4"))),
    "nasty": plan(
        container(
            image="evil\nimage: $(id)",
            image_path='/images/a b$(id)`x`}".sif',
            command=("sh", "-c", NASTY, ""),
            working_dir="/w $(id)",
            mounts=(podplan.Mount("/a:b,c\"d' $(id)", "/in $(id)"), podplan.Mount("/x $(id)", "/y", True)),
            termination_message_path="/tmp/$(id) log",
        ),
        job={"flags": ("--comment=$(id) `id` \"q\" 's' \\ # x; rm -rf /",)},
        pod_dir="/home/al ice/$(id)/pods/p",
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    text = script.job_script(PLANS[name])
    tree = str(Path(script.__file__).parents[2])
    golden(f"pods/{name}.sbatch", text.replace(tree, "/opt/hpk"))


@pytest.mark.parametrize("name", PLANS)
def test_shellcheck(name: str, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    path = tmp_path / "job.sh"
    path.write_text(script.job_script(PLANS[name]))
    # SC2016: single quotes keep the user's $ from the shell, which is the intention
    done = subprocess.run([shellcheck, "--exclude=SC2016", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_of_the_users_is_evaluated(tmp_path: Path) -> None:
    """Run the nasty container's function by bash with a runtime that prints its arguments."""
    (tmp_path / "bin").mkdir()
    runtime = tmp_path / "bin" / "apptainer"
    runtime.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    runtime.chmod(0o755)
    nasty = dataclasses.replace(PLANS["nasty"], pod_dir=str(tmp_path / "al ice$(id)"))
    (tmp_path / "job.sh").write_text(script.job_script(nasty))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HPK_SCRATCH": str(tmp_path / "scratch"), "HPK_SHM": "/dev/shm/x"}
    done = subprocess.run(["bash", str(tmp_path / "job.sh"), "container", "main"], env=environment, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = done.stdout.decode().split("\0")[:-1]
    planned = nasty.containers[0]
    assert words[-4:] == list(planned.command)
    assert words[-5] == planned.image_path
    assert words[words.index("--pwd") + 1] == planned.working_dir
    assert f"{nasty.pod_dir}/containers/main/termination-log:{planned.termination_message_path}" in words
    assert 'type=bind,"source=/a:b,c""d\' $(id)",destination=/in $(id)' in words
    assert not list(Path("/tmp").glob("evil"))


@pytest.mark.parametrize("flag", ["--qos=a\nb", "--qos=a\rb", "--qos=a\0b", "--qos=\x7f"])
def test_line_breaks_in_flags_are_refused_by_name(flag: str) -> None:
    with pytest.raises(errors.InvalidInput, match=r"annotation slurm-job\.hpk\.io/flags"):
        script.job_script(plan(job={"flags": (flag,)}))


def test_time_limit_leaves_the_pod_its_deadline_before_slurms_warning() -> None:
    text = script.job_script(plan(job={"time_limit": 60}, termination_grace_period=30))
    minutes = int(text.partition("#SBATCH --time=")[2].split()[0])
    warning = int(text.partition("#SBATCH --signal=B:TERM@")[2].split()[0])
    assert minutes * 60 - warning - 60 >= 60 - 30  # what is left before the earliest warning, and the deadline


def test_longest_grace_period_is_one_that_slurm_takes() -> None:
    assert "--signal=B:TERM@65535" in script.job_script(plan(termination_grace_period=10**6))


def test_line_breaks_in_mpi_flags_are_refused_by_name() -> None:
    with pytest.raises(errors.InvalidInput, match=r"annotation slurm-job\.hpk\.io/mpi-flags"):
        script.job_script(plan(container(mpi_flags=("-n\n2",))))


def test_environment_file_is_what_a_shell_reads_back() -> None:
    values = {"A": NASTY, "EMPTY": "", "QUOTE": "'", "LINES": "\n\n"}
    text = script.env_file(container(env=values))
    body = text.replace('exec "$@"\nexit 0\n', "env -0\n")
    done = subprocess.run(["/bin/sh", "-c", body], env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    seen = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0")[:-1])
    assert {name: seen.get(name) for name in values} == values


def test_environment_file_holds_names_that_no_shell_can_set() -> None:
    text = script.env_file(container(env={"a.b": "x\ny", "A-B": "$x", "UID": "7", "OK": "1"}))
    first, rest = text.split("\n", 1)
    assert json.loads(first.removeprefix(script.ENVIRON_PREFIX)) == {"a.b": "x\ny", "A-B": "$x", "UID": "7"}
    assert "export OK=1" in rest
    assert "UID" not in rest


def test_values_are_not_in_the_script() -> None:
    text = script.job_script(plan(container(env={"PASSWORD": "hunter2", "pass.word": "hunter3"})))
    assert "hunter" not in text


@pytest.mark.parametrize("word", ["", "a", "a b", "$(id)", "'", podplan.POD_IP, f"x {podplan.POD_IP}'y", podplan.SCRATCH + "/v"])
def test_shell_quote(word: str) -> None:
    line = f"HPK_POD_IP='1.2.3.4 $'; HPK_SCRATCH='/s c'; printf %s {podplan.shell_quote(word)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout == word.replace(podplan.POD_IP, "1.2.3.4 $").replace(podplan.SCRATCH, "/s c")


def test_plan_record_can_be_written_and_names_what_the_supervisor_reads() -> None:
    record = script.plan_record(PLANS["several"])
    assert json.loads(json.dumps(record)) == record
    assert [c["name"] for c in record["initContainers"]] == ["prepare", "proxy"]
    assert record["initContainers"][1]["restartPolicy"] == "Always"
    assert record["script"] == f"{POD_DIR}/job.sh"
    assert record["jobVolumes"][0]["path"] == podplan.SCRATCH + "/volumes/data"


def test_last_line_starts_the_supervisor_with_the_plan() -> None:
    text = script.job_script(plan())
    line = next(line for line in text.splitlines() if line.strip().startswith("exec ") and "__main__.py" in line)
    words = shlex.split(line)
    assert words[1:4] == ["${HPK_PYTHON:-python3}", "-I", "-S"]
    assert words[-1] == f"{POD_DIR}/plan.json"
