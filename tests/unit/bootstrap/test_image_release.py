from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from hpk import errors
from hpk.bootstrap.image import cache, parts, progress, release

PROGRAMS = {"etcd": b"\x7fELF etcd", "etcdctl": b"\x7fELF etcdctl", "kubectl": b"\x7fELF kubectl"}


def tar_of(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Site:
    """A mirror folder with two release files, the table for them, and a locked cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mirror = folder / "mirror"
        self.cache = cache.Cache(str(folder / "cache"))
        self.out = io.StringIO()
        self.show = progress.Progress(self.out)
        archive = tar_of({"etcd-v3/etcd": PROGRAMS["etcd"], "etcd-v3/etcdctl": PROGRAMS["etcdctl"]})
        self.put("example.org/etcd-v3-amd64.tar.gz", archive)
        self.put("dl.example.org/amd64/kubectl", PROGRAMS["kubectl"])
        self.files = (
            parts.ReleaseFile(
                "etcd",
                "v3",
                "https://example.org/etcd-v3-{arch}.tar.gz",
                {"etcd": "etcd-v3/etcd", "etcdctl": "etcd-v3/etcdctl"},
                {"amd64": sha256(archive)},
                "https://example.org/SHA256SUMS",
            ),
            parts.ReleaseFile(
                "kubectl",
                "v1",
                "https://dl.example.org/{arch}/kubectl",
                {"kubectl": ""},
                {"amd64": sha256(PROGRAMS["kubectl"])},
                "https://dl.example.org/{arch}/kubectl.sha256",
            ),
        )
        monkeypatch.setattr(parts, "RELEASE_FILES", self.files)

    def put(self, path: str, content: bytes) -> None:
        target = self.mirror / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def ensure(self, given: dict[str, str] | None = None, arch: str = "amd64") -> dict[str, str]:
        with self.cache.locked(self.show):
            return release.ensure(self.cache, arch, str(self.mirror), given or {}, self.show)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_programs_come_out_of_archives_and_plain_files(site: Site) -> None:
    found = site.ensure()
    assert {name: Path(path).read_bytes() for name, path in found.items()} == PROGRAMS
    assert {os.stat(path).st_mode & 0o777 for path in found.values()} == {0o755}
    assert "etcd v3" in site.out.getvalue()


def test_second_time_needs_no_mirror(site: Site) -> None:
    first = site.ensure()
    for path in sorted(site.mirror.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert site.ensure() == first
    assert "kubectl v1: already there" in site.out.getvalue()


def test_another_checksum_means_another_file(site: Site) -> None:
    site.ensure()
    newer = b"\x7fELF kubectl, patched by the site"
    site.put("dl.example.org/amd64/kubectl", newer)
    assert Path(site.ensure({"kubectl": sha256(newer)})["kubectl"]).read_bytes() == newer


def test_wrong_checksum_leaves_the_cache_as_it_was(site: Site) -> None:
    site.put("dl.example.org/amd64/kubectl", b"evil")
    with pytest.raises(errors.HPKError, match=r"kubectl: wrong checksum of file:///.*: expected sha256:.*, got sha256:"):
        site.ensure()
    assert sorted(os.listdir(os.path.join(site.cache.root, "bin"))) == [".etcd.key", ".etcdctl.key", "etcd", "etcdctl"]
    assert sorted(os.listdir(site.cache.root)) == ["bin", "lock"]


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"<html>no such page</html>", "etcd.part: not a tar archive"), (tar_of({"other": b""}), "etcd.part: has no file etcd-v3/etcd")],
)
def test_archive_that_is_none(site: Site, content: bytes, text: str) -> None:
    site.put("example.org/etcd-v3-amd64.tar.gz", content)
    with pytest.raises(errors.HPKError, match=re.escape(text)):
        site.ensure({"etcd": sha256(content)})
    assert os.listdir(os.path.join(site.cache.root, "bin")) == []


def test_no_checksum_is_refused_before_anything_is_fetched(site: Site) -> None:
    with pytest.raises(errors.InvalidInput, match=r"no pinned checksum for etcd v3, kubectl v1 \(arm64\)") as raised:
        site.ensure(arch="arm64")
    assert "controlPlane.releaseChecksums" in (raised.value.hint or "")
    assert os.listdir(os.path.join(site.cache.root, "bin")) == []


def test_site_checksums_are_checked(site: Site) -> None:
    with pytest.raises(errors.InvalidInput, match=r"controlPlane.releaseChecksums.kubelet: unknown file; known: etcd, kubectl"):
        site.ensure({"kubelet": sha256(b"")})
    with pytest.raises(errors.InvalidInput, match=r"controlPlane.releaseChecksums.etcd: 'md5:00' is not"):
        site.ensure({"etcd": "md5:00"})


def test_key_follows_versions_and_checksums(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    base = release.key("amd64", {})
    assert base == release.key("amd64", {})
    assert base != release.key("arm64", {})
    assert base != release.key("amd64", {"etcd": sha256(b"")})
    monkeypatch.setattr(parts, "RELEASE_FILES", site.files[:1])
    assert base != release.key("amd64", {})


def test_published_checksums(site: Site) -> None:
    etcd, kubectl = "1" * 64, "2" * 64
    site.put("example.org/SHA256SUMS", f"{'3' * 64}  etcd-v3-arm64.tar.gz\n{etcd}  etcd-v3-amd64.tar.gz\n".encode())
    site.put("dl.example.org/amd64/kubectl.sha256", kubectl.encode())
    assert release.published("amd64", str(site.mirror)) == {"etcd": f"sha256:{etcd}", "kubectl": f"sha256:{kubectl}"}
    site.put("dl.example.org/amd64/kubectl.sha256", b"<html>")
    with pytest.raises(errors.HPKError, match="does not state the SHA-256 of kubectl"):
        release.published("amd64", str(site.mirror))


def test_the_real_table() -> None:
    programs = [program for file in parts.RELEASE_FILES for program in file.programs]
    assert sorted(programs) == sorted(program.name for program in parts.PROGRAMS)
    versions = {program.name: program.version for program in parts.PROGRAMS}
    for file in parts.RELEASE_FILES:
        assert file.url.startswith("https://")
        assert file.version.removeprefix("v") in file.url
        assert {versions[program] for program in file.programs} == {file.version}
        for arch, value in file.checksums.items():
            assert arch in ("amd64", "arm64")
            assert parts.checksum(file, arch, {}) == value
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", value)


def test_pins_in_the_tree_are_the_versions_of_the_table() -> None:
    folder = Path(parts.containers_dir())
    for program in parts.PROGRAMS:
        text = (folder / "go" / program.module / "go.mod").read_text()
        module = {"etcd": program.package, "kubernetes": "k8s.io/kubernetes", "coredns": program.package}[program.module]
        assert re.search(rf"^\t?(?:require )?{re.escape(module)} {re.escape(program.version)}(?: // indirect)?$", text, re.M), program
        assert re.search(rf"^(?:tool |\t){re.escape(program.package)}$", text, re.M), f"{program.package} is not a tool of its go.mod"


def test_singularityfile_takes_every_program() -> None:
    text = (Path(parts.containers_dir()) / "Singularityfile").read_text()
    for program in parts.PROGRAMS:
        assert f"    usr/bin/{program.name} /usr/bin/{program.name}\n" in text
