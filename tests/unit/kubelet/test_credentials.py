import base64
import json
import pathlib
from typing import Any

import pytest

from hpk.kubelet import credentials

A, B = credentials.Credential("a", "pa"), credentials.Credential("b", "pb")


def encoded(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def test_secrets_of_both_kinds() -> None:
    auth = base64.b64encode(b"a:pa").decode()
    new = {
        "auths": {"r.example.org": {"auth": auth}, "x": {"username": "b", "password": "pb"}, "empty": {}, "bad": {"auth": "?"}, "odd": 3}
    }
    assert credentials.of_secret({"data": {".dockerconfigjson": encoded(new)}}) == {"r.example.org": A, "x": B}
    assert credentials.of_secret({"data": {".dockercfg": encoded({"r": {"auth": auth}})}}) == {"r": A}
    for damaged in ({}, {"data": {".dockerconfigjson": "bm90IGpzb24="}}, {"data": {".dockerconfigjson": encoded([1])}}):
        assert credentials.of_secret(damaged) == {}


@pytest.mark.parametrize(
    ("key", "host", "repository", "fits"),
    [
        ("r.example.org", "r.example.org", "a/b", True),
        ("https://r.example.org/v1/", "r.example.org", "a/b", True),
        ("r.example.org/a", "r.example.org", "a/b", True),
        ("r.example.org/x", "r.example.org", "a/b", False),
        ("*.example.org", "r.example.org", "a/b", True),
        ("*.example.org", "example.org", "a/b", False),
        ("*.example.org", "r.s.example.org", "a/b", False),
        ("r.example.org", "r.example.org:5000", "a", False),
        ("r.example.org:5000", "r.example.org:5000", "a", True),
        ("r.example.org:5000", "r.example.org", "a", False),
        ("https://index.docker.io/v1/", "docker.io", "library/busybox", True),
        ("docker.io/team", "docker.io", "library/busybox", False),
        ("r.example.org.evil.net", "r.example.org", "a", False),
    ],
)
def test_matching(key: str, host: str, repository: str, fits: bool) -> None:
    assert credentials.matching(host, repository, [{key: A}]) == ([A] if fits else [])


def test_most_specific_first_and_each_once() -> None:
    ring = {"r.example.org": A, "r.example.org/team": B, "other.example.org": credentials.Credential("c", "pc")}
    assert credentials.matching("r.example.org", "team/app", [ring, {"r.example.org": A}]) == [B, A]


def test_own_logins(tmp_path: pathlib.Path) -> None:
    assert credentials.own(str(tmp_path)) == {}
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": {"r": {"username": "a", "password": "pa"}}}))
    assert credentials.own(str(tmp_path)) == {"r": A}
    (tmp_path / ".docker/config.json").write_text("damaged")
    assert credentials.own(str(tmp_path)) == {}


def test_password_is_not_shown() -> None:
    assert "pa" not in repr(A)
