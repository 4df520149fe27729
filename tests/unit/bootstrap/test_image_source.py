"""Building from source with a go command that a test writes: a small script on PATH."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from hpk import errors
from hpk.bootstrap.image import cache, parts, progress, source


class Machine:
    """A copy of the pins, a cache, and a PATH with nothing but a ``go`` that notes how it was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.containers = folder / "containers"
        shutil.copytree(parts.containers_dir(), self.containers)
        self.cache = cache.Cache(str(folder / "cache"))
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls = folder / "calls"
        self.out = io.StringIO()
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("GOFLAGS", "-mod=mod")

    def go(self, version: str, build: str = 'while [ "$1" != -o ]; do shift; done; echo "built $3" >"$2"') -> None:
        script = self.bin / "go"
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = env ]; then {version}; exit; fi\necho "$PWD $GOFLAGS $CGO_ENABLED $*" >>{self.calls}\n{build}\n'
        )
        script.chmod(0o755)

    def ensure(self) -> dict[str, str]:
        show = progress.Progress(self.out)
        with self.cache.locked(show):
            return source.ensure(self.cache, str(self.containers), "amd64", show)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_builds_every_program_by_its_pins(machine: Machine) -> None:
    machine.go("echo go1.99.1")
    found = machine.ensure()
    assert {name: Path(path).read_text() for name, path in found.items()} == {
        program.name: f"built {program.package}\n" for program in parts.PROGRAMS
    }
    calls = machine.calls.read_text().splitlines()
    assert len(calls) == len(parts.PROGRAMS)
    assert all("-mod=readonly" in call and "-mod=mod" not in call and "-trimpath" in call and " 0 build " in call for call in calls)
    assert f"gitVersion={parts.KUBERNETES}" in next(call for call in calls if call.endswith("kube-apiserver"))


def test_second_time_builds_nothing_and_needs_no_go(machine: Machine) -> None:
    machine.go("echo go1.99.1")
    first = machine.ensure()
    (machine.bin / "go").unlink()
    machine.calls.unlink()
    assert machine.ensure() == first
    assert not machine.calls.exists()


def test_a_changed_pin_builds_its_programs_again(machine: Machine) -> None:
    machine.go("echo go1.99.1")
    machine.ensure()
    before = source.key(str(machine.containers), "amd64")
    machine.calls.unlink()
    with open(machine.containers / "go" / "etcd" / "go.sum", "a") as file:
        file.write("\n")
    assert source.key(str(machine.containers), "amd64") != before
    machine.ensure()
    assert [call.split()[-1] for call in machine.calls.read_text().splitlines()] == [
        "go.etcd.io/etcd/server/v3",
        "go.etcd.io/etcd/etcdctl/v3",
    ]


def test_no_go(machine: Machine) -> None:
    with pytest.raises(errors.MissingTool, match="go not found on PATH") as raised:
        machine.ensure()
    assert "Go >= 1.26.0" in (raised.value.hint or "")


@pytest.mark.parametrize(
    "answer", ["echo go1.19.8", "echo go1.25.9", "echo 'go: go.mod requires go >= 1.26.0 (GOTOOLCHAIN=local)' >&2; exit 1", "echo devel"]
)
def test_go_too_old(machine: Machine, answer: str) -> None:
    machine.go(answer)
    with pytest.raises(errors.MissingTool, match=r"/go is too old: 1\.26\.0 is needed, it says: \S"):
        machine.ensure()
    assert not machine.calls.exists()


def test_failed_build_says_why_and_leaves_nothing(machine: Machine) -> None:
    machine.go("echo go1.99.1", build='echo "go: downloading x v1" >&2; echo "dial tcp: no route to host" >&2; exit 1')
    with pytest.raises(errors.ProcessError, match=r"^go build go\.etcd\.io/etcd/server/v3: dial tcp: no route to host$"):
        machine.ensure()
    assert list((Path(machine.cache.root) / "bin").iterdir()) == []


@pytest.mark.parametrize(("text", "version"), [("go1.26.8", (1, 26, 8)), ("1.26", (1, 26, 0)), ("go1.27rc1", (1, 27, 0))])
def test_go_version(text: str, version: tuple[int, ...]) -> None:
    assert source.go_version(text) == version
