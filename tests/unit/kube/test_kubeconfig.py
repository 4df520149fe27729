"""Reading of kubeconfigs: each mistake is one line that names file and field."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest
import yaml

from hpk import errors
from hpk.kube import kubeconfig
from tests.component.conftest import Authority


def config(cluster: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": {"server": "https://h:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


def write(folder: Any, content: Any) -> str:
    path = os.fspath(folder / "kubeconfig")
    with open(path, "w", encoding="utf-8") as file:
        file.write(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_files_and_data(tmp_path: Any) -> None:
    authority = Authority(os.fspath(tmp_path / "pki"))
    certificate, key = authority.issue("me", "me")

    def data(path: str) -> str:
        with open(path, "rb") as file:
            return base64.b64encode(file.read()).decode()

    by_path = config({"certificate-authority": "pki/ca.crt"}, {"client-certificate": "pki/me.crt", "client-key": key})
    found = kubeconfig.load(write(tmp_path, by_path))
    assert found.server == "https://h:6443"
    assert found.tls is not None
    assert kubeconfig.signature(found) == found.signature
    os.utime(certificate, (1, 1))
    assert kubeconfig.signature(found) != found.signature  # a renewed certificate is seen
    inline = config(
        {"certificate-authority-data": data(authority.certificate)},
        {"client-certificate-data": data(certificate), "client-key-data": data(key)},
    )
    assert kubeconfig.load(write(tmp_path, inline)).tls is not None


def test_token_and_server_name(tmp_path: Any) -> None:
    found = kubeconfig.load(write(tmp_path, config({"tls-server-name": "s"}, {"token": "t"})))
    assert (found.token, found.server_name) == ("t", "s")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as a kubeconfig"),
        ("[]", "not a kubeconfig"),
        ({**config({}, {}), "current-context": "y"}, "contexts: no entry named 'y'"),
        ({**config({}, {}), "clusters": None}, "clusters: no entry named 'c'"),
        (config({"server": "h:6443"}, {}), "server 'h:6443' is not a URL"),
        (config({}, {"exec": {"command": "x"}}), "exec is not supported"),
        (config({"certificate-authority": "nosuch.crt"}, {}), "certificate-authority: nosuch.crt: No such file"),
        (config({"certificate-authority-data": "!"}, {}), "certificate-authority-data: not base64"),
        (config({"certificate-authority-data": "eA=="}, {}), "certificate-authority is no certificate"),
        (config({}, {"client-certificate-data": "eA=="}), "client-certificate and client-key go together"),
        (config({}, {"client-certificate-data": "eA==", "client-key-data": "eA=="}), "cannot be used together"),
    ],
)
def test_mistakes(tmp_path: Any, content: Any, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(errors.InvalidInput) as caught:
        kubeconfig.load(path)
    assert words in caught.value.message
    assert path in caught.value.message
    assert "\n" not in caught.value.message


def test_no_such_file(tmp_path: Any) -> None:
    with pytest.raises(errors.InvalidInput, match="no such file"):
        kubeconfig.load(os.fspath(tmp_path / "none"))
