"""Putting the image together with an ``apptainer`` that a test writes, and the command around it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from hpk import cli, errors, paths
from hpk.bootstrap.image import build, cache, parts, progress

#: The image it makes is a listing of the folder that it was started in; it understands the flag of compression, or it does not.
APPTAINER = """#!/bin/sh
echo "$*" >>{calls}
if [ "$1 $2" = "build --help" ]; then echo "{help}"; exit; fi
if [ "$1" = exec ]; then {exec}; exit; fi
{build}
if [ "$3" = --mksquashfs-args ]; then {packed}; shift 2; fi
ls usr/bin etc >"$3"
"""


class Machine:
    """A HOME and a PATH of one's own; the release table names programs in a mirror folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bin = folder / "path"
        self.bin.mkdir()
        for tool in ("ls", "sh"):
            (self.bin / tool).symlink_to(f"/bin/{tool}")
        self.calls = folder / "calls"
        self.home = folder / "home"
        self.home.mkdir()
        self.image = self.home / ".hpk" / "images" / "control-plane.sif"
        self.mirror = folder / "mirror"
        files = []
        for program in parts.PROGRAMS:
            content = program.name.encode()
            target = self.mirror / "example.org" / program.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            checksum = "sha256:" + hashlib.sha256(content).hexdigest()
            url = f"https://example.org/{program.name}"
            files.append(
                parts.ReleaseFile(
                    program.name, program.version, url, {program.name: ""}, {"amd64": checksum, "arm64": checksum}, url + ".sha256"
                )
            )
        monkeypatch.setattr(parts, "RELEASE_FILES", tuple(files))
        for name in list(os.environ):
            if name.startswith(("HPK_", "XDG_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("HPK_SITE_CONFIG", str(folder / "none"))
        self.apptainer()

    def apptainer(
        self,
        *,
        name: str = "apptainer",
        help: str = "--mksquashfs-args",
        exec: str = "echo Kubernetes v1",
        build: str = ":",
        packed: str = ":",
    ) -> None:
        script = self.bin / name
        script.write_text(APPTAINER.format(calls=self.calls, help=help, exec=exec, build=build, packed=packed))
        script.chmod(0o755)

    def hpk(self, *words: str) -> int:
        return cli.main(["image", "build", "--mirror", str(self.mirror), *words])

    def called(self) -> list[str]:
        return [line.split()[0] for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_image_and_kubectl(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.hpk() == 0
    listed = machine.image.read_text().split()
    assert {program.name for program in parts.PROGRAMS} < set(listed)
    assert {"passwd", "group", "nsswitch.conf", "hpk-release"} < set(listed)
    kubectl = machine.home / ".hpk" / "bin" / "kubectl"
    assert kubectl.read_text() == "kubectl"
    assert os.access(kubectl, os.X_OK)
    out = capsys.readouterr().out
    for text in [*(f"{program.name} {program.version}" for program in parts.PROGRAMS), "runs here: Kubernetes v1", str(machine.image)]:
        assert text in out
    assert machine.called() == ["build", "build", "exec"]
    assert build.COMPRESSION in machine.calls.read_text()
    assert {(machine.home / ".hpk" / part).stat().st_mode & 0o777 for part in (".", "images", "bin")} == {0o700}
    assert sorted(os.listdir(machine.image.parent)) == ["control-plane.sif", "control-plane.sif.json"]
    assert sorted(os.listdir(machine.home / ".cache" / "hpk")) == ["bin", "lock"]


def test_second_call_does_nothing_and_says_so(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.hpk()
    machine.calls.unlink()
    for script in machine.bin.iterdir():
        script.unlink()
    capsys.readouterr()
    before = machine.image.stat()
    assert machine.hpk() == 0
    assert capsys.readouterr().out == f"nothing to do: {machine.image} is up to date\n"
    assert machine.image.stat() == before


def test_force_builds_again(machine: Machine) -> None:
    machine.hpk()
    before = machine.image.stat().st_ino
    assert machine.hpk("--force") == 0
    assert machine.image.stat().st_ino != before


@pytest.mark.parametrize("damage", ["note", "image", "missing", "garbage"])
def test_an_image_that_is_not_the_noted_one_is_built_again(machine: Machine, damage: str) -> None:
    machine.hpk()
    note = Path(str(machine.image) + ".json")
    content = machine.image.read_text()
    if damage == "note":
        note.write_text(json.dumps({**json.loads(note.read_text()), "key": "0"}))
    elif damage == "image":
        machine.image.write_text("cut")
    elif damage == "missing":
        machine.image.unlink()
    else:
        note.write_text("{")
    machine.calls.unlink()
    assert machine.hpk() == 0
    assert machine.called() == ["build", "build", "exec"]
    assert machine.image.read_text() == content


def test_changed_singularityfile_changes_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "containers"
    shutil.copytree(parts.containers_dir(), folder)
    before = build.key(str(folder), "programs", "amd64")
    with open(folder / "Singularityfile", "a") as file:
        file.write("#\n")
    assert build.key(str(folder), "programs", "amd64") != before
    assert build.key(str(folder), "others", "amd64") != build.key(str(folder), "programs", "amd64")


def test_older_singularity_builds_with_its_default_compression(machine: Machine) -> None:
    (machine.bin / "apptainer").unlink()
    machine.apptainer(name="singularity", help="no such flag")
    assert machine.hpk() == 0
    assert "mksquashfs" not in machine.calls.read_text()


def test_squashfs_tools_without_the_compression(machine: Machine) -> None:
    machine.apptainer(packed="exit 1")
    assert machine.hpk() == 0
    assert machine.called() == ["build", "build", "build", "exec"]


def test_kernel_without_the_compression(machine: Machine) -> None:
    made = machine.folder / "made"
    machine.apptainer(
        build=f"echo plain >{made}",
        packed=f"echo packed >{made}",
        exec=f"read how <{made}; [ $how = plain ] || exit 255; echo Kubernetes v1",
    )
    assert machine.hpk() == 0
    assert machine.called() == ["build", "build", "exec", "build", "exec"]


def test_failed_build_keeps_the_old_image(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.hpk()
    before = machine.image.read_text()
    machine.apptainer(build="echo 'FATAL: no space left' >&2; echo half >$3; exit 255")
    assert machine.hpk("--force") == 1
    assert "apptainer failed with exit code 255: FATAL: no space left" in capsys.readouterr().err
    assert machine.image.read_text() == before
    assert sorted(os.listdir(machine.image.parent)) == ["control-plane.sif", "control-plane.sif.json"]


def test_image_that_does_not_run_here_is_not_put_in_place(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.apptainer(exec="echo 'user namespaces disabled' >&2; exit 255")
    assert machine.hpk() == 1
    assert "user namespaces disabled" in capsys.readouterr().err
    assert os.listdir(machine.image.parent) == []


def test_no_apptainer_is_told_before_anything_is_fetched(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (machine.bin / "apptainer").unlink()
    assert machine.hpk() == 1
    assert capsys.readouterr().err.splitlines()[0] == "hpk: error: apptainer or singularity not found on PATH"
    assert not (machine.home / ".cache").exists()


def test_the_site_has_one(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    image = machine.folder / "site.sif"
    monkeypatch.setenv("HPK_CONTROL_PLANE_IMAGE", str(image))
    assert machine.hpk() == 1
    assert f"controlPlane.image: {image} does not exist" in capsys.readouterr().err
    image.write_text("")
    assert machine.hpk() == 0
    assert capsys.readouterr().out.startswith(f"nothing to do: {image} is used")
    assert machine.called() == []
    assert machine.hpk("--force") == 0
    assert machine.image.exists()


def test_output_elsewhere_is_readable_by_all_and_has_no_kubectl_beside(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    output = machine.folder / "site" / "control-plane.sif"
    monkeypatch.setenv("HPK_CACHE", str(machine.folder / "cache"))
    old = os.umask(0o022)
    try:
        assert machine.hpk("--output", str(output)) == 0
    finally:
        os.umask(old)
    assert output.parent.stat().st_mode & 0o777 == 0o755
    assert output.stat().st_mode & 0o777 == 0o755
    assert (machine.folder / "cache" / "bin" / "etcd").stat().st_mode & 0o777 == 0o755
    assert not (machine.home / ".hpk").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--from", "source"], "--mirror: only for --from release"),
        (["--mirror", "ftp://x"], "--mirror: 'ftp://x' is not an https://"),
        (["--output", "/"], "--output: / is a folder"),
    ],
)
def test_bad_flags(machine: Machine, capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert machine.hpk(*words) == 1
    assert text in capsys.readouterr().err
    assert machine.called() == []


def test_cache_that_cannot_be_written(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HPK_CACHE", "/proc/hpk")
    assert machine.hpk() == 1
    assert "the cache /proc/hpk cannot be written" in capsys.readouterr().err


def test_full_disk_is_one_line_and_leaves_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (machine.mirror / "example.org" / "coredns").write_bytes(b"x" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a quota, as far as a program can tell
    try:
        assert machine.hpk() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].endswith(": File too large")
    assert "coredns" not in " ".join(os.listdir(machine.home / ".cache" / "hpk" / "bin"))
    assert not machine.image.exists()


def test_mirror_of_the_config(machine: Machine) -> None:
    (machine.home / ".hpk").mkdir()
    (machine.home / ".hpk" / "hpk.yaml").write_text(f"controlPlane: {{releaseMirror: {machine.mirror}}}\n")
    assert cli.main(["image", "build"]) == 0
    assert machine.image.exists()


def test_files_lists_what_a_mirror_needs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image", "files"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"https://example.org/{program.name}" for program in parts.PROGRAMS]


def test_checksums_prints_a_piece_of_config(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image", "checksums", "--mirror", str(machine.mirror)]) == 1
    assert capsys.readouterr().out == ""
    for program in parts.PROGRAMS:
        (machine.mirror / "example.org" / f"{program.name}.sha256").write_text("a" * 64 + "\n")
    assert cli.main(["image", "checksums", "--mirror", str(machine.mirror)]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["controlPlane"]["releaseChecksums"] == {program.name: "sha256:" + "a" * 64 for program in parts.PROGRAMS}


def test_two_builders_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PACE", 0.01)
    store, out = cache.Cache(str(tmp_path)), io.StringIO()
    order: list[str] = []

    def second() -> None:
        with store.locked(progress.Progress(out)):
            order.append("second")

    with store.locked(progress.Progress(io.StringIO())):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting" not in out.getvalue():
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_killed_builder_leaves_nothing_that_counts(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from hpk.bootstrap.image import cache, progress\n"
        "store = cache.Cache(sys.argv[1])\n"
        "with store.locked(progress.Progress()), store.new('etcd', 'key') as path:\n"
        "    open(path, 'w').write('half')\n"
        "    open(store.temporary('x.part'), 'w').write('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    store = cache.Cache(str(tmp_path))
    assert not store.has("etcd", "key")
    with store.locked(progress.Progress(io.StringIO())):
        assert os.listdir(tmp_path / "bin") == []
        assert os.listdir(tmp_path / "work") == []


def test_interrupted_program_is_not_there(tmp_path: Path) -> None:
    store = cache.Cache(str(tmp_path))
    with store.locked(progress.Progress(io.StringIO())):
        with store.new("etcd", "old") as path:
            Path(path).write_text("old")
        with pytest.raises(KeyboardInterrupt), store.new("etcd", "new") as path:
            Path(path).write_text("half")
            raise KeyboardInterrupt
        assert store.has("etcd", "old")
        assert not store.has("etcd", "new")
        assert Path(store.path("etcd")).read_text() == "old"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/alice")
    assert paths.cache_dir() == "/home/alice/.cache/hpk"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/alice")
    assert paths.cache_dir() == "/scratch/alice/hpk"
    monkeypatch.setenv("HPK_CACHE", "/var/cache/hpk")
    assert paths.cache_dir() == "/var/cache/hpk"


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(errors.InvalidInput, match="machine type riscv64"):
        parts.architecture()
