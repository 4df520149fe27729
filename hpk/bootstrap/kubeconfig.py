"""Kubeconfigs with everything inside, so that a copy of the one file works wherever the API server can be reached."""

from __future__ import annotations

import base64

import yaml

from hpk import files


def _inline(path: str) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


def build(*, cluster: str, user: str, server: str, ca: str, cert: str, key: str) -> str:
    """Return the kubeconfig (YAML) of ``user`` for the API server at URL ``server``; the others are paths of PEM files."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": _inline(ca)}}],
            "users": [{"name": user, "user": {"client-certificate-data": _inline(cert), "client-key-data": _inline(key)}}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
            "current-context": cluster,
        },
        sort_keys=False,
    )


def write(path: str, text: str) -> None:
    """Write a kubeconfig (it holds a private key: 0600) unless ``path`` has this content already."""
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
    except FileNotFoundError:
        pass
    files.write_atomic(path, text)
