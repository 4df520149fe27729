"""Which credentials fit which image: pull secrets and the user's own logins. Pure but for ``own()``.

The matching is that of upstream's credential provider: a key of ``auths`` is a host, with ``*`` inside its dot-separated parts, a
port that must be equal, and a path that the image's repository must begin with. All that fit are tried, the most specific first.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import fnmatch
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

#: Names under which Docker Hub's credentials are kept.
_DOCKER_HUB = ("index.docker.io", "docker.io", "registry-1.docker.io")


@dataclasses.dataclass(frozen=True)
class Credential:
    username: str
    password: str = dataclasses.field(repr=False)


def of_secret(secret: Mapping[str, Any]) -> dict[str, Credential]:
    """Return the entries of a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg; damaged ones are left out."""
    data = secret.get("data") or {}
    for key, nested in ((".dockerconfigjson", True), (".dockercfg", False)):
        if key in data:
            try:
                parsed = json.loads(base64.b64decode(data[key]))
            except ValueError:
                return {}
            return entries(parsed.get("auths") if nested and isinstance(parsed, dict) else parsed)
    return {}


def own(home: str | None = None) -> dict[str, Credential]:
    """Return what the user has logged in to with apptainer or docker on this system, as upstream's kubelet uses its node's."""
    home = home or os.path.expanduser("~")
    found: dict[str, Credential] = {}
    for name in (".docker/config.json", ".apptainer/docker-config.json"):
        try:
            with open(os.path.join(home, name), encoding="utf-8") as file:
                parsed = json.load(file)
        except (OSError, ValueError):
            continue
        if isinstance(parsed, dict):
            found.update(entries(parsed.get("auths")))
    return found


def entries(auths: Any) -> dict[str, Credential]:
    """Return the usable entries of an ``auths`` mapping."""
    found = {}
    for key, value in auths.items() if isinstance(auths, dict) else ():
        if not isinstance(value, dict):
            continue
        username, password = value.get("username") or "", value.get("password") or ""
        if value.get("auth"):
            try:
                username, _, password = base64.b64decode(value["auth"]).decode().partition(":")
            except (binascii.Error, ValueError):
                continue
        if username and isinstance(username, str) and isinstance(password, str):
            found[str(key)] = Credential(username, password.rstrip("\0"))
    return found


def matching(host: str, repository: str, keyrings: Iterable[Mapping[str, Credential]]) -> list[Credential]:
    """Return the credentials for a repository, most specific key first, keyrings in their order, each once."""
    found: list[Credential] = []
    for keyring in keyrings:
        for key in sorted(keyring, reverse=True):
            if _matches(key, host, repository) and keyring[key] not in found:
                found.append(keyring[key])
    return found


def _matches(key: str, host: str, repository: str) -> bool:
    bare = key.split("://", 1)[-1].rstrip("/")
    pattern, _, path = bare.partition("/")
    if path in ("v1", "v2"):  # the API's own path, in keys as docker login writes them
        path = ""
    if pattern in _DOCKER_HUB and host in _DOCKER_HUB:
        return repository.startswith(path)
    pattern_name, _, pattern_port = pattern.partition(":")
    name, _, port = host.partition(":")
    patterns, parts = pattern_name.split("."), name.split(".")
    return (
        pattern_port == port
        and len(patterns) == len(parts)
        and all(fnmatch.fnmatchcase(part, glob) for glob, part in zip(patterns, parts, strict=True))
        and repository.startswith(path)
    )
