"""What the kubelet's main knows from files of an earlier run."""

from __future__ import annotations

import os
import pathlib

import pytest

from hpk import errors, files, paths
from hpk.kubelet import main


@pytest.fixture
def where(tmp_path: pathlib.Path) -> paths.Paths:
    found = paths.Paths(str(tmp_path))
    for folder in (found.pods, found.run, found.pki):
        files.private_dir(folder)
    return found


def test_token_of_a_pod_that_is_not_known_yet_is_in_its_folder(where: paths.Paths) -> None:
    folder = where.pod("default", "web", "uid-1")
    files.private_dir(folder.root)
    files.write_atomic(folder.token, "s3cret\n")
    tokens = main.Tokens(where)
    assert tokens("uid-1") == "s3cret"
    for uid in ("uid-2", "", "*", "uid-?", "web_uid-1/../default_web_uid-1", "uid-1/"):
        assert tokens(uid) is None, uid


def test_empty_token_is_none(where: paths.Paths) -> None:
    folder = where.pod("default", "web", "uid-1")
    files.private_dir(folder.root)
    files.write_atomic(folder.token, "\n")
    assert main.Tokens(where)("uid-1") is None


def test_port_of_the_last_run(where: paths.Paths) -> None:
    assert main._last_port(where) == 0
    assert main._last_alive(where) == 0.0
    files.write_json(where.kubelet_endpoint, {"address": "10.0.0.1", "port": 4711, "serverName": "hpk-kubelet"})
    assert main._last_port(where) == 4711
    assert main._last_alive(where) == os.stat(where.kubelet_endpoint).st_mtime
    files.write_atomic(where.kubelet_endpoint, "{")
    assert main._last_port(where) == 0


def test_missing_certificate_is_named(where: paths.Paths) -> None:
    with pytest.raises(errors.InvalidInput, match=r"kubelet\.crt"):
        main._tls(where)
