"""Reading of a kubeconfig: where the API server is and how to prove who we are.

The file and the files that it names are watched by their stat(2) values (``signature``): a control plane that was started
again elsewhere, or a renewed certificate, is seen without a restart.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import os
import ssl
import urllib.parse
from collections.abc import Iterator
from typing import Any

from hpk import errors


@dataclasses.dataclass(frozen=True)
class Credentials:
    """The current context of a kubeconfig. ``server`` is a URL without slash at its end."""

    server: str
    tls: ssl.SSLContext | None
    server_name: str | None
    token: str | None
    token_file: str | None
    signature: tuple[Any, ...]


def _stat(path: str) -> tuple[Any, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return (path, None)
    return (path, found.st_mtime_ns, found.st_size, found.st_ino)


def signature(credentials: Credentials) -> tuple[Any, ...]:
    """The present signature of the files that ``credentials`` were made of."""
    return tuple(_stat(entry[0]) for entry in credentials.signature)


def _named(config: dict[str, Any], plural: str, kind: str, name: str, path: str) -> dict[str, Any]:
    for entry in config.get(plural) or []:
        if entry.get("name") == name:
            return entry.get(kind) or {}
    raise errors.InvalidInput(f"{path}: {plural}: no entry named {name!r}")


@contextlib.contextmanager
def _as_path(data: bytes) -> Iterator[str]:
    """A path to read ``data`` from. Memory only: a private key must not touch a disk on its way to OpenSSL."""
    fd = os.memfd_create("kubeconfig", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def load(path: str) -> Credentials:
    """Read the current context. Raises InvalidInput that names the file and the field."""
    import yaml  # here: the reader of a kubeconfig needs it once

    try:
        with open(path, encoding="utf-8") as file:
            before = _stat(path)
            config = yaml.safe_load(file)
    except FileNotFoundError as exc:
        raise errors.InvalidInput(f"{path}: no such file", hint="start the cluster first, or set KUBECONFIG") from exc
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise errors.InvalidInput(f"{path}: cannot be read as a kubeconfig: {type(exc).__name__}") from exc
    if not isinstance(config, dict):
        raise errors.InvalidInput(f"{path}: not a kubeconfig")
    context = _named(config, "contexts", "context", config.get("current-context") or "", path)
    cluster = _named(config, "clusters", "cluster", context.get("cluster") or "", path)
    user = _named(config, "users", "user", context.get("user") or "", path) if context.get("user") else {}
    for field in ("exec", "auth-provider", "username"):
        if field in user:
            raise errors.InvalidInput(f"{path}: users: {field} is not supported", hint="use a client certificate or a token")
    watched = [before]

    def content(section: dict[str, Any], key: str) -> bytes | None:
        encoded = section.get(f"{key}-data")
        try:
            if encoded:
                return base64.b64decode(encoded, validate=True)
            if section.get(key):
                name = os.path.join(os.path.dirname(os.path.abspath(path)), section[key])
                watched.append(_stat(name))
                with open(name, "rb") as file:
                    return file.read()
        except (binascii.Error, ValueError) as exc:
            raise errors.InvalidInput(f"{path}: {key}-data: not base64") from exc
        except OSError as exc:
            raise errors.InvalidInput(f"{path}: {key}: {section[key]}: {exc.strerror}") from exc
        return None

    server = str(cluster.get("server") or "").rstrip("/")
    scheme = urllib.parse.urlsplit(server).scheme
    if scheme not in ("https", "http"):
        raise errors.InvalidInput(f"{path}: clusters: server {server!r} is not a URL")
    tls = None
    if scheme == "https":
        tls = _tls(
            path,
            authority=content(cluster, "certificate-authority"),
            certificate=content(user, "client-certificate"),
            key=content(user, "client-key"),
            insecure=bool(cluster.get("insecure-skip-tls-verify")),
        )
    token_file = user.get("tokenFile")
    return Credentials(
        server=server,
        tls=tls,
        server_name=cluster.get("tls-server-name") or None,
        token=user.get("token") or None,
        token_file=os.path.join(os.path.dirname(os.path.abspath(path)), token_file) if token_file else None,
        signature=tuple(watched),
    )


def _tls(path: str, *, authority: bytes | None, certificate: bytes | None, key: bytes | None, insecure: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif authority is not None:
            context.load_verify_locations(cadata=authority.decode("ascii"))
        else:
            context.load_default_certs()
    except (ssl.SSLError, UnicodeDecodeError) as exc:
        raise errors.InvalidInput(f"{path}: certificate-authority is no certificate in PEM form") from exc
    if certificate is not None or key is not None:
        if certificate is None or key is None:
            raise errors.InvalidInput(f"{path}: client-certificate and client-key go together")
        try:
            with _as_path(certificate) as certificate_path, _as_path(key) as key_path:
                context.load_cert_chain(certificate_path, key_path)
        except ssl.SSLError as exc:
            raise errors.InvalidInput(f"{path}: client-certificate and client-key cannot be used together: {exc.reason}") from exc
    return context
