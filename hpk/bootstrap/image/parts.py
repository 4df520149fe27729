"""What is in the image, and where each program comes from: the one table of versions, Go packages, release files and checksums.

To go to a new version: change it here, the pins in containers/go/<module>/ (``go get -tool PACKAGE@VERSION``), and the checksums.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Mapping

from hpk import errors

KUBERNETES = "v1.36.3"
ETCD = "v3.6.8"
COREDNS = "v1.14.7"

_VERSION_PACKAGE = "k8s.io/component-base/version"
_MAJOR, _MINOR = KUBERNETES.removeprefix("v").split(".")[:2]
_KUBERNETES_LDFLAGS = (
    f"-X {_VERSION_PACKAGE}.gitVersion={KUBERNETES} -X {_VERSION_PACKAGE}.gitMajor={_MAJOR} -X {_VERSION_PACKAGE}.gitMinor={_MINOR}"
)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of the image, in /usr/bin there."""

    name: str
    version: str
    module: str
    """Folder below containers/go that pins it."""
    package: str
    """Go package of its main()."""
    ldflags: str = ""


PROGRAMS = (
    Program("etcd", ETCD, "etcd", "go.etcd.io/etcd/server/v3"),
    Program("etcdctl", ETCD, "etcd", "go.etcd.io/etcd/etcdctl/v3"),
    Program("kube-apiserver", KUBERNETES, "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", _KUBERNETES_LDFLAGS),
    Program("kube-controller-manager", KUBERNETES, "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", _KUBERNETES_LDFLAGS),
    Program("kubectl", KUBERNETES, "kubernetes", "k8s.io/kubernetes/cmd/kubectl", _KUBERNETES_LDFLAGS),
    Program("coredns", COREDNS, "coredns", "github.com/coredns/coredns"),
)


@dataclasses.dataclass(frozen=True)
class ReleaseFile:
    """One official release file. ``{arch}`` stands for amd64 or arm64 in the texts."""

    name: str
    version: str
    url: str
    members: Mapping[str, str]
    """Program to its member in the tar archive; an empty member: the file is the program."""
    checksums: Mapping[str, str]
    """arch to ``sha256:HEX`` or ``sha512:HEX``. What is not here is refused until the site names it (controlPlane.releaseChecksums)."""
    published: str
    """Where its publisher gives the SHA-256: a text with the digest alone or in lines of ``sha256sum``."""

    def for_arch(self, text: str, arch: str) -> str:
        return text.replace("{arch}", arch)

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(self.members)


def _kubernetes(program: str, **checksums: str) -> ReleaseFile:
    url = f"https://dl.k8s.io/{KUBERNETES}/bin/linux/{{arch}}/{program}"
    return ReleaseFile(program, KUBERNETES, url, {program: ""}, checksums, f"{url}.sha256")


_ETCD_URL = f"https://github.com/etcd-io/etcd/releases/download/{ETCD}"
_ETCD_DIR = f"etcd-{ETCD}-linux-{{arch}}"
_COREDNS_URL = f"https://github.com/coredns/coredns/releases/download/{COREDNS}/coredns_{COREDNS.removeprefix('v')}_linux_{{arch}}.tgz"

#: A checksum stands here only when it was seen published; never one computed from a file that we merely downloaded.
RELEASE_FILES = (
    ReleaseFile(
        "etcd",
        ETCD,
        f"{_ETCD_URL}/{_ETCD_DIR}.tar.gz",
        {"etcd": f"{_ETCD_DIR}/etcd", "etcdctl": f"{_ETCD_DIR}/etcdctl"},
        {},
        f"{_ETCD_URL}/SHA256SUMS",
    ),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kubectl", amd64="sha256:ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336"),
    ReleaseFile(
        "coredns",
        COREDNS,
        _COREDNS_URL,
        {"coredns": "coredns"},
        {"amd64": "sha256:9a09356438c6d9591cb80011a2a7a52f87fc3a113f6690e41f243f98b98faac9"},
        f"{_COREDNS_URL}.sha256",
    ),
)

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def architecture() -> str:
    """This machine's architecture in Go's words. Raises InvalidInput for one without official releases."""
    known = {"x86_64": "amd64", "aarch64": "arm64"}
    machine = platform.machine()
    if machine not in known:
        raise errors.InvalidInput(f"machine type {machine}: the control plane runs on {' and '.join(known)}")
    return known[machine]


def checksum(file: ReleaseFile, arch: str, given: Mapping[str, str]) -> str:
    """Return the pinned checksum of ``file``: the site's own (``given``) or the table's; empty when there is none.

    Raises InvalidInput when the site's has not the form of a checksum.
    """
    value = given.get(file.name, "").lower()
    if value and not _CHECKSUM.fullmatch(value):
        raise errors.InvalidInput(
            f"controlPlane.releaseChecksums.{file.name}: {given[file.name]!r} is not sha256: and 64 or sha512: and 128 hexadecimal digits"
        )
    return value or file.checksums.get(arch, "")


def check_names(given: Mapping[str, str]) -> None:
    """Raise InvalidInput when the site's checksums name a file that does not exist."""
    names = [file.name for file in RELEASE_FILES]
    for name in given:
        if name not in names:
            raise errors.InvalidInput(f"controlPlane.releaseChecksums.{name}: unknown file; known: {', '.join(names)}")


def containers_dir() -> str:
    """Return the folder ``containers``: the tree's, or the one installed with the package. Raises InvalidInput when neither is there."""
    tree = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    known = [os.path.join(tree, "containers"), os.path.join(sysconfig.get_path("data"), "share", "hpk", "containers")]
    for folder in known:
        if os.path.isfile(os.path.join(folder, "Singularityfile")):
            return folder
    raise errors.InvalidInput("containers/Singularityfile was not found", hint="run HPK from its tree, or install it anew")


def digest(*texts: bytes | str) -> str:
    """Return a short key for ``texts``, in their order."""
    sum_ = hashlib.sha256()
    for text in texts:
        raw = text.encode() if isinstance(text, str) else text
        sum_.update(b"%d:" % len(raw) + raw)
    return sum_.hexdigest()[:16]


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
