"""Container images in the OCI layout (https://github.com/opencontainers/image-spec), written file by file.

An image is a list of layers and a configuration; ``write`` puts it into a folder that ``skopeo copy oci:FOLDER`` understands. As
with images on public registries, its top is an index with one manifest for linux/amd64.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

_TYPE = "application/vnd.oci.image"
_CREATED = "2026-01-01T00:00:00Z"


@dataclasses.dataclass(frozen=True)
class File:
    """One entry of a layer."""

    path: str
    """Without the leading slash. A name ``.wh.X`` removes X of the layers below."""
    content: bytes = b""
    mode: int = 0o644
    link: str = ""
    """Target, for a symbolic link."""
    folder: bool = False
    uid: int = 0
    gid: int = 0


@dataclasses.dataclass(frozen=True)
class Image:
    layers: Sequence[str]
    """Paths of gzipped tar files, the lowest first."""
    config: Mapping[str, Any]
    """The ``config`` object of the image's configuration: Entrypoint, Cmd, Env, User, WorkingDir, ..."""


def layer(path: str, files: Sequence[File]) -> str:
    """Write a layer of these files to ``path`` and return the path."""
    with open(path, "wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            entry = tarfile.TarInfo(file.path)
            entry.mode, entry.uid, entry.gid = file.mode, file.uid, file.gid
            if file.folder:
                entry.type = tarfile.DIRTYPE
            elif file.link:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.link
            entry.size = 0 if entry.type != tarfile.REGTYPE else len(file.content)
            tar.addfile(entry, io.BytesIO(file.content))
    return path


def write(folder: str, image: Image) -> str:
    """Write the image as an OCI layout into ``folder`` and return the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(f"{folder}/blobs/sha256")
    layers = [_blob(folder, "layer.v1.tar+gzip", path) for path in image.layers]
    config = {
        "created": _CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [_unpacked_digest(path) for path in image.layers]},
        "history": [{"created": _CREATED, "created_by": "tests/testbed/images.py"} for _ in image.layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _json_blob(folder, "config.v1+json", config),
        "layers": layers,
    }
    own = {**_json_blob(folder, "manifest.v1+json", manifest), "platform": {"architecture": "amd64", "os": "linux"}}
    index = {"schemaVersion": 2, "mediaType": f"{_TYPE}.index.v1+json", "manifests": [own]}
    top = {"schemaVersion": 2, "manifests": [_json_blob(folder, "index.v1+json", index)]}
    for name, value in (("index.json", top), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            json.dump(value, file)
    return folder


def read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def blob_path(folder: str, descriptor: Mapping[str, Any]) -> str:
    """Path of what a descriptor points to."""
    return f"{folder}/blobs/{descriptor['digest'].replace(':', '/')}"


def manifest(folder: str) -> Any:
    """The manifest for linux/amd64 of a layout that ``write`` made."""
    (index,) = read_json(f"{folder}/index.json")["manifests"]
    (own,) = read_json(blob_path(folder, index))["manifests"]
    return read_json(blob_path(folder, own))


def _json_blob(folder: str, kind: str, value: Any) -> dict[str, Any]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{folder}/blobs/sha256/{digest}", "wb") as file:
        file.write(data)
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def _blob(folder: str, kind: str, path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = _sha256(file)
    target = f"{folder}/blobs/sha256/{digest}"
    if not os.path.exists(target):
        try:
            os.link(path, target)
        except OSError:  # another file system
            shutil.copy(path, target)
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": os.path.getsize(path)}


def _unpacked_digest(path: str) -> str:
    with gzip.open(path) as file:
        return f"sha256:{_sha256(file)}"


def _sha256(file: IO[bytes] | gzip.GzipFile) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
