"""What a user can get wrong before anything runs: one clear line each, nothing touched, no traceback."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import pytest

TREE = str(pathlib.Path(__file__).parents[3])


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "home" / ".hpk"
    path.mkdir(parents=True, mode=0o700)
    return path


@pytest.fixture
def tools(tmp_path: pathlib.Path) -> pathlib.Path:
    """The only folder on PATH, with an apptainer that is never really run."""
    path = tmp_path / "bin"
    path.mkdir()
    (path / "apptainer").write_text("#!/bin/false\n")
    (path / "apptainer").chmod(0o755)
    return path


def hpk(home: pathlib.Path, tools: pathlib.Path, *argv: str) -> tuple[int, list[str]]:
    env = {"HPK_HOME": str(home), "PATH": str(tools), "PYTHONPATH": TREE, "HOME": str(home.parent), "HPK_SITE_CONFIG": "/dev/null"}
    done = subprocess.run([sys.executable, "-m", "hpk", *argv], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()


def content(home: pathlib.Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")}


def image(home: pathlib.Path) -> None:
    (home / "images").mkdir()
    (home / "images" / "control-plane.sif").touch()


@pytest.fixture
def no_jobs(tools: pathlib.Path) -> None:
    """A Slurm without any job."""
    for name in ("sbatch", "squeue"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)


@pytest.mark.usefixtures("no_jobs")
@pytest.mark.parametrize("command", ["control-plane", "up"])
def test_no_image(home: pathlib.Path, tools: pathlib.Path, command: str) -> None:
    code, lines = hpk(home, tools, command)
    assert (code, len(lines)) == (1, 2)
    assert lines[0].startswith("hpk: error: no control-plane image:")
    assert lines[1] == "hint: `hpk image build` makes it"
    assert content(home) == set()


def test_image_that_cannot_be_read(home: pathlib.Path, tools: pathlib.Path) -> None:
    (home / "hpk.yaml").write_text(f"controlPlane: {{image: {home}/hpk.yaml/x.sif}}\n")
    code, lines = hpk(home, tools, "control-plane")
    assert code == 1
    assert lines[0].startswith("hpk: error: controlPlane.image:")
    assert content(home) == {"hpk.yaml"}


def test_apptainer_not_on_path(home: pathlib.Path, tools: pathlib.Path) -> None:
    image(home)
    (tools / "apptainer").unlink()
    code, lines = hpk(home, tools, "control-plane")
    assert code == 1
    assert lines[0] == "hpk: error: apptainer or singularity not found on PATH"


def test_sbatch_not_on_path(home: pathlib.Path, tools: pathlib.Path) -> None:
    code, lines = hpk(home, tools, "up")
    assert code == 1
    assert lines[0] == "hpk: error: sbatch not found on PATH"
    assert "hpk slurm up" in lines[1]
    assert content(home) == set()


@pytest.mark.parametrize("command", ["control-plane", "up", "status"])
def test_state_of_another_version(home: pathlib.Path, tools: pathlib.Path, command: str) -> None:
    (home / "version").write_text("999\n")
    code, lines = hpk(home, tools, command)
    assert code == 1
    assert "format '999'" in lines[0]
    assert content(home) == {"version"}


def test_port_taken(home: pathlib.Path, tools: pathlib.Path) -> None:
    image(home)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (home / "hpk.yaml").write_text(f"controlPlane: {{address: 127.0.0.1, port: {port}}}\n")
        code, lines = hpk(home, tools, "control-plane")
    assert code == 1
    assert lines[0].startswith(f"hpk: error: controlPlane.port: port {port} of 127.0.0.1 is taken")
    assert "pki" not in content(home)


def test_address_of_another_machine(home: pathlib.Path, tools: pathlib.Path) -> None:
    image(home)
    (home / "hpk.yaml").write_text("controlPlane: {address: 192.0.2.77}\n")
    code, lines = hpk(home, tools, "control-plane")
    assert code == 1
    assert lines[0].startswith("hpk: error: controlPlane.address: '192.0.2.77' is not an address of this node")


def test_state_directory_in_use(home: pathlib.Path, tools: pathlib.Path) -> None:
    image(home)
    script = f"""
import asyncio, sys, time
from hpk.bootstrap import lock
asyncio.run(lock.Lock({str(home / "lock")!r}, lock.Owner.here("c1"), job_alive=None).acquire())
print(flush=True)
time.sleep(60)
"""
    env = {**os.environ, "PYTHONPATH": TREE}
    with subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        code, lines = hpk(home, tools, "control-plane")
        holder.kill()
    assert code == 1
    assert lines[0] == f"hpk: error: {home} is in use by the control plane of process {holder.pid} on c1"
    assert "pki/ca.crt" not in content(home)


def test_script_that_is_not_there(home: pathlib.Path, tools: pathlib.Path) -> None:
    code, lines = hpk(home, tools, "up", "--script", "/no/such.sbatch")
    assert code == 1
    assert lines[0] == "hpk: error: --script: /no/such.sbatch does not exist"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster: {serviceCidr: 10.96.0.0/8}", "cluster.serviceCidr: 10.96.0.0/8 has host bits set"),
        ("cluster: {serviceCidr: 10.0.0.0/8}", "cluster.serviceCidr: 10.0.0.0/8 must hold"),
        ("cluster: {podCidr: pods}", "cluster.podCidr: 'pods' does not appear to be"),
        ("controlPlane: {port: 70000}", "controlPlane.port: 70000 is not a port"),
        ("controlPlane: {prot: 1}", "unknown field; did you mean port?"),
    ],
)
def test_configuration(home: pathlib.Path, tools: pathlib.Path, text: str, words: str) -> None:
    (home / "hpk.yaml").write_text(text + "\n")
    for command in ("control-plane", "up"):
        code, lines = hpk(home, tools, command)
        assert code == 1
        assert words in lines[0]
    assert content(home) == {"hpk.yaml"}


def test_path_that_apptainer_cannot_bind(tmp_path: pathlib.Path, tools: pathlib.Path) -> None:
    odd = tmp_path / "a:b"
    odd.mkdir()
    code, lines = hpk(odd, tools, "control-plane")
    assert code == 1
    assert "colon" in lines[0]


@pytest.mark.usefixtures("no_jobs")
def test_up_beside_a_control_plane_run_by_hand(home: pathlib.Path, tools: pathlib.Path) -> None:
    (home / "lock").write_text('{"host":"c9","boot":"b","pid":7,"started":"1","cluster":"","job_id":"","restart":0,"token":"t"}')
    code, lines = hpk(home, tools, "up")
    assert code == 1
    assert lines[0] == "hpk: error: the control plane runs already: process 7 on c9"
