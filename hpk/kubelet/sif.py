"""Image files: making them with the runtime, and reading the two files inside that tell users' names.

A SIF is a header, a table of descriptors and, in one of its partitions, a squashfs with the root file system.
Source: github.com/sylabs/sif, pkg/sif (format version 01).
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tempfile

from hpk import config as configuration
from hpk import errors, procs
from hpk.kubelet import credentials, registry

_MAGIC = b"SIF_MAGIC\0"
_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
_PARTITION = 0x4004
#: Longest /etc/passwd or /etc/group that is looked at.
_MAX_TABLE = 1024 * 1024


async def pull(
    target: str,
    where: registry.Endpoint,
    digest: str,
    credential: credentials.Credential | None,
    config: configuration.ImagesConfig,
    *,
    work: str,
) -> None:
    """Make image file ``target`` from the manifest ``digest``; ``work`` is a private folder for layers. Raises ProcessError, MissingTool.

    Credentials travel in the environment, which only the user can read.
    """
    runtime = procs.container_runtime()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("APPTAINER_", "SINGULARITY_"))}
    for prefix in ("APPTAINER", "SINGULARITY"):
        env[f"{prefix}_TMPDIR"] = env[f"{prefix}_CACHEDIR"] = work
        if credential is not None:
            env[f"{prefix}_DOCKER_USERNAME"] = credential.username
            env[f"{prefix}_DOCKER_PASSWORD"] = credential.password
    options = ["--disable-cache", *(["--no-https"] if where.insecure else [])]
    squashfs = ["--mksquashfs-args", config.squashfs_args] if config.squashfs_args else []
    uri = f"docker://{where.host}/{where.repository}@{digest}"

    async def build(*more: str) -> procs.Completed:
        try:
            return await procs.arun([runtime, "--silent", "build", *options, *more, target, uri], env=env, timeout=config.pull_timeout)
        except errors.ProcessError as exc:  # arun() itself raises for the time-out only
            raise errors.HPKError(f"pulling took longer than {config.pull_timeout:g} s (images.pullTimeout)") from exc

    done = await build(*squashfs)
    if done.returncode and squashfs and re.search("unknown flag|mksquashfs|[Cc]ompress", done.stderr):
        # An older runtime, or squashfs tools without zstd: then as they do by themselves.
        if os.path.exists(target):
            os.unlink(target)
        done = await build()
    done.check()
    squashfs_offset(target)  # what was written is what we think


def squashfs_offset(path: str) -> int:
    """Return where the root file system begins. Raises InvalidInput when ``path`` is not a SIF with a squashfs."""
    try:
        with open(path, "rb") as file:
            header = _HEADER.unpack(file.read(_HEADER.size))
            if header[1] != _MAGIC:
                raise errors.InvalidInput(f"{path} is not a SIF image")
            total, offset = header[8], header[9]
            file.seek(offset)
            for _ in range(min(total, 1024)):
                entry = _DESCRIPTOR.unpack(file.read(_DESCRIPTOR.size))
                kind, used, begin = entry[0], entry[1], entry[5]
                if used and kind == _PARTITION:
                    place = file.tell()
                    file.seek(begin)
                    if file.read(4) == b"hsqs":
                        return int(begin)
                    file.seek(place)
    except struct.error as exc:
        raise errors.InvalidInput(f"{path} is not a SIF image: it is too short") from exc
    raise errors.InvalidInput(f"{path} has no squashfs partition")


async def user_tables(path: str) -> tuple[str, str]:
    """Return /etc/passwd and /etc/group of an image file or folder; empty texts where it has none or they cannot be read."""
    if os.path.isdir(path):
        return _read(os.path.join(path, "etc/passwd")), _read(os.path.join(path, "etc/group"))
    try:
        offset = squashfs_offset(path)
        program = procs.find("unsquashfs")
    except errors.HPKError:
        return "", ""  # names then cannot be looked up, which the container that needs one says
    with tempfile.TemporaryDirectory(prefix="hpk-") as folder:
        out = os.path.join(folder, "root")
        # Its exit code tells little: it complains about owners that a user cannot set, and about files that are not there.
        await procs.arun([program, "-n", "-no-xattrs", "-o", str(offset), "-d", out, path, "etc/passwd", "etc/group"], timeout=60)
        return _read(os.path.join(out, "etc/passwd")), _read(os.path.join(out, "etc/group"))


def _read(path: str) -> str:
    """Content of a regular file inside an image; never through a link, which would lead out of it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_MAX_TABLE).decode(errors="replace")
