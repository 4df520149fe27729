"""`make demo` as an ordinary user says all that is missing, and how to get it. The whole of it: tests/e2e/test_demo.py."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from scripts import demo


def bare_machine(monkeypatch: pytest.MonkeyPatch, *there: str) -> None:
    monkeypatch.setattr(demo.shutil, "which", lambda name, path=None: f"/usr/bin/{name}" if name in there else None)
    monkeypatch.setattr(demo, "has_slurm", lambda: False)
    monkeypatch.setattr(demo, "has_user_namespaces", lambda: True)
    monkeypatch.setattr(demo.os, "access", lambda path, mode: True)


def test_all_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bare_machine(monkeypatch, "mksquashfs", "slurmd")
    said = demo.say_missing(demo.missing())
    for what in ("Apptainer or Singularity", "squashfuse", "busybox", "munged", "slurmctld", "sbatch"):
        assert f"\n  {what}\n" in said
    assert "\n  slurmd\n" not in said
    assert "as root: apt-get install --no-install-recommends squashfuse busybox-static munge slurmctld slurm-client\n" in said
    assert said.endswith(f"sudo make -C {demo.TREE} demo")


def test_a_slurm_of_the_site_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    bare_machine(monkeypatch, "mksquashfs", "squashfuse", "busybox", "singularity")
    monkeypatch.setattr(demo, "has_slurm", lambda: True)
    assert demo.missing() == []


def test_user_namespaces_and_fuse_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bare_machine(monkeypatch, "mksquashfs", "squashfuse", "busybox", "apptainer", *demo.SLURM)
    monkeypatch.setattr(demo, "has_user_namespaces", lambda: False)
    monkeypatch.setattr(demo.os, "access", lambda path, mode: path != "/dev/fuse")
    assert [what.split(" ")[0] for what, _ in demo.missing()] == ["/dev/fuse", "user"]


def test_make_test_says_that_it_needs_root() -> None:
    argv = ["bash", os.path.join(demo.TREE, "scripts/test.sh")]
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", *argv] if os.getuid() == 0 else argv
    script = pathlib.Path(argv[1]).read_text()
    done = subprocess.run([*as_nobody[:-2], "bash", "-s"], input=script, capture_output=True, text=True, timeout=30, cwd="/")
    assert done.returncode == 1
    assert "needs root: sudo make test" in done.stderr
    assert "make unit" in done.stderr


def test_usage() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.demo", "sideways"], capture_output=True, text=True, timeout=30, cwd=demo.TREE)
    assert done.returncode == 2
    assert "up|down" in done.stderr
