"""SIF images mounted once for the whole Pod, in its own mount namespace.

Mounted there, the image's files belong to the Pod's root, whom each container's user namespace maps to the id that it runs as.
Mounted by the runtime, in the container's namespace, they would belong to an id that does not exist there, and a container that
runs as another user than root could not write to /tmp. Several containers and restarts share one mount.
"""

from __future__ import annotations

import os
import struct
import time

_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
_DESCRIPTOR = struct.Struct("<iBIIIqqqqqqq128s384s")
_PARTITION = 0x4004
_SQUASHFS = 1
_PRIMARY = 2


def squashfs_offset(path: str) -> int | None:
    """Offset of the root file system in a SIF file; None when the file is something else (a folder, an ext3 image)."""
    try:
        with open(path, "rb") as file:
            header = _HEADER.unpack(file.read(_HEADER.size))
            if not header[1].startswith(b"SIF_MAGIC"):
                return None
            count, offset = header[8], header[9]
            file.seek(offset)
            for _ in range(min(count, 1024)):
                fields = _DESCRIPTOR.unpack(file.read(_DESCRIPTOR.size))
                kind, partition = struct.unpack_from("<ii", fields[13])
                if fields[0] == _PARTITION and fields[1] and kind == _SQUASHFS and partition == _PRIMARY:
                    return int(fields[5])
    except (OSError, struct.error):
        return None
    return None


def squashfuse() -> str | None:
    """The FUSE program: on PATH, or the one that Apptainer's own packages bring along."""
    for name in ("squashfuse_ll", "squashfuse"):
        found = _which(name)
        if found:
            return found
    runtime = _which("apptainer") or _which("singularity")
    if runtime:
        prefix = os.path.dirname(os.path.dirname(os.path.realpath(runtime)))
        for name in ("libexec/apptainer/bin/squashfuse_ll", "libexec/singularity/bin/squashfuse_ll"):
            path = os.path.join(prefix, name)
            if os.access(path, os.X_OK):
                return path
    return None


def wait_mounted(path: str, pid: int, seconds: float = 10.0) -> bool:
    """Wait until something is mounted on ``path`` by process ``pid``. For a forked child: it sleeps."""
    parent = os.stat(os.path.dirname(path)).st_dev
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.stat(path).st_dev != parent:
            return True
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"Z":
                    return False
        except OSError:
            return False
        time.sleep(0.001)
    return False


def _which(name: str) -> str | None:
    for folder in os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":"):
        path = os.path.join(folder, name)
        if folder and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None
