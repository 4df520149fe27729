"""The whole of ``hpk image build`` by an ordinary user: real programs, a mirror over HTTP, a real Apptainer, the image started."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpk.bootstrap.image import parts

pytestmark = pytest.mark.component

TREE = Path(__file__).resolve().parents[2]
BINARIES = Path(os.environ.get("HPK_CACHE", "/var/cache/hpk"), "bin")
#: Pythons that may do where the one of the tests is closed to others: the test bed's, the system's.
PYTHONS = ("/var/cache/hpk/testbed/venv/bin/python", "/usr/bin/python3")
#: An account without subuid range, home or privileges.
NOBODY = 65534


class User:
    """Runs commands as an ordinary user with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(TREE),
            "LANG": "C.UTF-8",
            "HPK_SITE_CONFIG": str(home / "none"),
            "APPTAINER_CONFIGDIR": str(home / ".apptainer"),
            "TMPDIR": str(home / "tmp"),
        }

    def run(self, *argv: str, umask: int = 0o077, **env: str) -> subprocess.CompletedProcess[str]:
        root = os.geteuid() == 0
        return subprocess.run(
            argv,
            env={**self.env, **env},
            cwd=self.home,
            user=NOBODY if root else None,
            group=NOBODY if root else None,
            extra_groups=[] if root else None,
            umask=umask,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def hpk(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "-m", "hpk", *words, **env)

    @functools.cached_property
    def python(self) -> str:
        """A Python that the user may run and that has what hpk's configuration needs: root's own may lie in root's home."""
        for python in (sys.executable, *PYTHONS):
            try:
                if self.run(python, "-c", "import yaml, hpk.config").returncode == 0:
                    return python
            except OSError:
                pass  # not there, or not for this user
        pytest.skip(f"none of {', '.join((sys.executable, *PYTHONS))} can be run by uid {NOBODY}, or it has no PyYAML")


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    if not shutil.which("apptainer") and not shutil.which("singularity"):
        pytest.skip("no Apptainer on PATH")
    home = Path(tempfile.mkdtemp(prefix="hpk-image-"))
    (home / "tmp").mkdir()
    if os.geteuid() == 0:
        for path in (home, home / "tmp"):
            os.chown(path, NOBODY, NOBODY)
    yield User(home)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def mirror(user: User) -> Iterator[str]:
    """A mirror of the release files, made of the programs that were built here; their sums are in the user's hpk.yaml."""
    missing = [program.name for program in parts.PROGRAMS if not (BINARIES / program.name).exists()]
    if missing:
        pytest.skip(f"{BINARIES} has no {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="hpk-mirror-"))
    arch, sums = parts.architecture(), {}
    for file in parts.RELEASE_FILES:
        target = folder / file.for_arch(file.url, arch).removeprefix("https://")
        target.parent.mkdir(parents=True, exist_ok=True)
        if list(file.members.values()) == [""]:
            target.symlink_to(BINARIES / file.name)
        else:
            with tarfile.open(target, "w:gz", compresslevel=1) as tar:
                for program, member in file.members.items():
                    tar.add(BINARIES / program, file.for_arch(member, arch))
        with open(target, "rb") as opened:
            sums[file.name] = hashlib.sha256(opened.read()).hexdigest()
        published = folder / file.for_arch(file.published, arch).removeprefix("https://")
        published.write_text(f"{sums[file.name]}  {target.name}\n")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(user: User, mirror: str) -> Path:
    """The image, built as an administrator without internet would: sums looked at and pinned, then the files from the mirror."""
    sums = user.hpk("image", "checksums", "--mirror", mirror)
    assert sums.returncode == 0, sums.stderr
    state = user.home / ".hpk"
    made = user.run("sh", "-c", 'mkdir -m 700 "$1" && printf %s "$2" >"$1/hpk.yaml"', "sh", str(state), sums.stdout)
    assert made.returncode == 0, made.stderr
    built = user.hpk("image", "build", "--from", "release", "--mirror", mirror)
    assert built.returncode == 0, built.stderr
    assert f"runs here: Kubernetes {parts.KUBERNETES}" in built.stdout
    return state / "images" / "control-plane.sif"


def test_every_program_starts_from_the_image(user: User, image: Path) -> None:
    for words, text in (
        (("etcd", "--version"), parts.ETCD.removeprefix("v")),
        (("etcdctl", "version"), parts.ETCD.removeprefix("v")),
        (("kube-apiserver", "--version"), parts.KUBERNETES),
        (("kube-controller-manager", "--version"), parts.KUBERNETES),
        (("kubectl", "version", "--client"), parts.KUBERNETES),
        (("coredns", "-version"), parts.COREDNS.removeprefix("v")),
    ):
        done = user.run("apptainer", "exec", "--no-home", str(image), *words)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout


def test_all_may_read_the_image_and_what_is_in_it(user: User, image: Path) -> None:
    assert image.stat().st_mode & 0o777 == 0o755
    # kubectl run as another user than the owner of the files in the image reads them all, though the builder's umask was 077
    listed = user.run("unsquashfs", "-d", "", "-ll", "-o", _squashfs_offset(user, image), str(image)).stdout
    modes = {line.split()[-1]: line.split()[0] for line in listed.splitlines() if line[:1] in "-d"}
    for path in ("/usr", "/usr/bin", "/etc", "/etc/ssl/certs"):
        assert modes[path] == "drwxr-xr-x", (path, modes[path])
    assert modes["/tmp"] == "drwxrwxrwt"
    assert modes["/etc/passwd"] == "-rw-r--r--"
    assert modes["/usr/bin/kube-apiserver"] == "-rwxr-xr-x"


def _squashfs_offset(user: User, image: Path) -> str:
    """Where the squashfs begins: the data object of the SIF that is one."""
    content = image.read_bytes()[: 1 << 20]
    return str(content.index(b"hsqs"))


def test_kubectl_is_put_beside(user: User, image: Path) -> None:
    done = user.run(str(user.home / ".hpk" / "bin" / "kubectl"), "version", "--client")
    assert parts.KUBERNETES in done.stdout


def test_second_call_does_nothing(user: User, image: Path, mirror: str) -> None:
    before = image.stat()
    again = user.hpk("image", "build", "--mirror", mirror)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"nothing to do: {image} is up to date\n"
    assert image.stat() == before


def test_without_pinned_sums_it_is_refused(user: User, mirror: str) -> None:
    refused = user.hpk("image", "build", "--mirror", mirror, HPK_HOME=str(user.home / "other"))
    assert refused.returncode == 1
    assert "no pinned checksum for etcd" in refused.stderr
    assert not (user.home / "other" / "images").exists()


def test_a_tampered_file_is_refused_and_the_image_stays(user: User, image: Path, mirror: str) -> None:
    before = image.stat()
    config = (user.home / ".hpk" / "hpk.yaml").read_text().splitlines()
    wrong = [line[:-1] + ("0" if line[-1] != "0" else "1") if "kubectl" in line else line for line in config]
    other = user.home / "tampered"
    user.run("sh", "-c", 'mkdir "$1" && printf %s "$2" >"$1/hpk.yaml"', "sh", str(other), "\n".join(wrong))
    refused = user.hpk("image", "build", "--mirror", mirror, HPK_HOME=str(other))
    assert refused.returncode == 1
    assert "hpk: error: kubectl: wrong checksum of http://127.0.0.1:" in refused.stderr
    assert ": expected sha256:" in refused.stderr
    assert ", got sha256:" in refused.stderr
    assert not (other / "images").exists()
    assert image.stat() == before


def test_the_note_tells_what_is_inside(image: Path) -> None:
    note = json.loads(Path(f"{image}.json").read_text())
    assert note["programs"] == {program.name: program.version for program in parts.PROGRAMS}
    assert note["size"] == image.stat().st_size
