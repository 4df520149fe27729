"""References to images: what ``busybox``, ``registry:5000/a/b:tag`` and ``quay.io/x@sha256:...`` name. Pure.

The grammar and the defaults are those of github.com/distribution/reference, which upstream's kubelet and containerd use.
"""

from __future__ import annotations

import dataclasses
import re

from hpk import errors

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_MAX_REPOSITORY = 255

_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"({_DOMAIN})/({_PATH}(?:/{_PATH})*)(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@({_DIGEST}))?")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A complete reference. ``tag`` is empty only when there is a digest."""

    domain: str
    """Registry host, with port where one was written; ``docker.io`` where none was."""
    repository: str
    """Path below the domain; ``library/busybox`` for ``busybox``."""
    tag: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.repository}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def is_local(image: str) -> bool:
    """Whether ``image`` is a file or folder on the shared file system, given by its absolute path, instead of a reference."""
    return image.startswith("/")


def parse(image: str) -> Reference:
    """Return what ``image`` names, with the defaults filled in. Raises InvalidInput in the words of upstream."""
    if _IDENTIFIER.fullmatch(image):
        raise errors.InvalidInput(f"invalid repository name ({image}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split_domain(image)
    repository = re.split("[:@]", remainder, maxsplit=1)[0]
    if repository.lower() != repository:
        raise errors.InvalidInput(f"invalid reference format: repository name ({repository}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if match is None:
        raise errors.InvalidInput("invalid reference format")
    domain, repository, tag, digest = match.groups()
    if len(repository) > _MAX_REPOSITORY:
        raise errors.InvalidInput(f"repository name must not be more than {_MAX_REPOSITORY} characters")
    if digest:
        _check_digest(digest)
    elif not tag:
        tag = DEFAULT_TAG
    return Reference(domain, repository, tag or "", digest or "")


def _split_domain(image: str) -> tuple[str, str]:
    first, slash, rest = image.partition("/")
    if not slash or ("." not in first and ":" not in first and first != "localhost" and first.lower() == first):
        domain, remainder = DEFAULT_DOMAIN, image
    else:
        domain, remainder = first, rest
    if domain == "index.docker.io":  # its name of long ago
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = f"library/{remainder}"
    return domain, remainder


def _check_digest(digest: str) -> None:
    algorithm, _, encoded = digest.partition(":")
    if algorithm not in _DIGEST_LENGTHS:
        raise errors.InvalidInput("unsupported digest algorithm")
    if len(encoded) != _DIGEST_LENGTHS[algorithm]:
        raise errors.InvalidInput("invalid checksum digest length")
    if not re.fullmatch("[a-f0-9]+", encoded):
        raise errors.InvalidInput("invalid checksum digest format")
