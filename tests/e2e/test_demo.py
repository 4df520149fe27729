"""README's `make demo` as an ordinary user of this machine: a private Slurm, a cluster, a Job's output; and its end."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.testbed import layout, users

pytestmark = pytest.mark.e2e
USER = "bob"
PARTS = ("Makefile", "README.md", "pyproject.toml", "hpk", "slurm", "containers", "scripts", "examples")


@pytest.fixture
def home() -> Iterator[pathlib.Path]:
    """A home with the tree in it, of a user who has never seen HPK."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    users.ensure()
    with tempfile.TemporaryDirectory(prefix="hpk-demo-") as folder:
        tree = pathlib.Path(folder, "hpk")
        tree.mkdir()
        for part in PARTS:
            source = pathlib.Path(layout.TREE, part)
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / part)
        subprocess.run(["chown", "-R", f"{USER}:{USER}", folder], check=True)
        os.chmod(folder, 0o700)
        yield pathlib.Path(folder)
        make(pathlib.Path(folder), "demo-down")


def make(home: pathlib.Path, target: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")}
    variables = {
        **kept,
        "HOME": str(home),
        "USER": USER,
        "LOGNAME": USER,
        "PATH": f"/usr/local/bin:/usr/bin:/bin:{layout.BINARIES}",
        "HPK_CONTROL_PLANE_IMAGE": layout.CONTROL_PLANE_IMAGE,
        **variables,
    }
    env = ["env", "-i", f"--chdir={home}", *(f"{name}={value}" for name, value in variables.items())]
    argv = ["runuser", "-u", USER, "--", *env, "make", "-C", "hpk", target]
    return subprocess.run(argv, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL)


def processes(home: pathlib.Path) -> list[str]:
    """Command lines of live processes that have to do with this home."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(home) in words:
            found.append(words)
    return found


@pytest.mark.timeout(900)
def test_demo_ends_with_a_jobs_output_and_leaves_nothing(home: pathlib.Path) -> None:
    done = make(home, "demo")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "private Slurm on " in done.stdout
    assert "node Ready" in done.stdout
    assert len({line for line in done.stdout.splitlines() if line.startswith("Hello from Pod hello-")}) == 3
    again = make(home, "demo")  # nothing to install or start, the Job once more
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-2000:]
    assert "it runs already" in again.stdout
    assert "is there already" in again.stdout
    ended = make(home, "demo-down")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not processes(home)


@pytest.mark.timeout(120)
def test_without_apptainer_it_says_so(home: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in ("python3", "make", "bash", "sh", "id", "dirname", "env", "unshare", "true"):
            os.symlink(shutil.which(name, path="/usr/bin:/bin") or name, f"{folder}/{name}")
        done = make(home, "demo", PATH=folder)
        assert done.returncode != 0
        assert "missing on this machine:" in done.stderr
        assert "Apptainer or Singularity" in done.stderr
        assert "sudo make" in done.stderr
