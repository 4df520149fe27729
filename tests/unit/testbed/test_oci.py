"""OCI layouts: digests, sizes and the unpacked layers' ids agree with what is on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import pathlib
import tarfile

from tests.testbed import oci


def _layout(tmp_path: pathlib.Path) -> tuple[str, bytes]:
    files = [
        oci.File("bin", mode=0o755, folder=True),
        oci.File("bin/tool", b"#!/bin/sh\n", 0o755),
        oci.File("bin/link", link="tool"),
        oci.File("etc/.wh.motd"),
    ]
    path = oci.layer(str(tmp_path / "layer.tar.gz"), files)
    layer = pathlib.Path(path).read_bytes()
    return oci.write(str(tmp_path / "oci"), oci.Image([path], {"Cmd": ["tool"], "User": "7"})), layer


def test_manifest_config_and_layer_are_found_by_their_digests(tmp_path: pathlib.Path) -> None:
    folder, layer = _layout(tmp_path)
    manifest = oci.manifest(folder)
    (descriptor,) = manifest["layers"]
    assert descriptor["digest"] == "sha256:" + hashlib.sha256(layer).hexdigest()
    assert descriptor["size"] == len(layer)
    config = oci.read_json(oci.blob_path(folder, manifest["config"]))
    assert config["config"] == {"Cmd": ["tool"], "User": "7"}
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(gzip.decompress(layer)).hexdigest()]


def test_layer_entries(tmp_path: pathlib.Path) -> None:
    _, layer = _layout(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        entries = {entry.name: entry for entry in tar}
        assert entries["bin"].isdir()
        assert (entries["bin/tool"].mode, entries["bin/tool"].size) == (0o755, 10)
        assert entries["bin/link"].linkname == "tool"
        assert entries["etc/.wh.motd"].size == 0


def test_same_files_give_the_same_layer(tmp_path: pathlib.Path) -> None:
    first, second = (oci.layer(str(tmp_path / name), [oci.File("x", b"y")]) for name in ("a", "b"))
    assert pathlib.Path(first).read_bytes() == pathlib.Path(second).read_bytes()
