"""A container's /dev, made in its own mount namespace before the runtime starts (docker and containerd: the OCI runtime spec's
default devices).

The runtime's own minimal /dev has no place for /dev/termination-log, cannot be given one, and is made anew per container, so
that /dev/shm would not be the Pod's. For a forked child that is root of the Pod's user namespace, in a mount namespace of its own.
"""

from __future__ import annotations

import os

from hpk import sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
#: Beginnings of the names of GPUs' devices.
_GPU_DEVICES = {"nvidia": ("nvidia",), "rocm": ("kfd", "dri")}


def make(target: str, shm: str, spec: dict[str, Any]) -> None:
    """Mount a new /dev for the container of ``spec`` on the folder ``target``, with ``shm`` as its shm. Raises OSError."""
    sandbox.mount("tmpfs", target, "tmpfs", sandbox.MS_NOSUID, "mode=0755,size=64k")
    for name in _DEVICES:
        _bind(f"/dev/{name}", os.path.join(target, name))
    wanted = _GPU_DEVICES.get(spec.get("gpu") or "")
    for name in os.listdir("/dev") if wanted else []:
        if wanted and name.startswith(wanted):
            _bind(f"/dev/{name}", os.path.join(target, name))
    for name, text in _LINKS.items():
        os.symlink(text, os.path.join(target, name))
    os.mkdir(os.path.join(target, "pts"))
    sandbox.mount("devpts", os.path.join(target, "pts"), "devpts", sandbox.MS_NOSUID, "newinstance,ptmxmode=0666,mode=620")
    os.mkdir(os.path.join(target, "shm"))
    sandbox.mount(shm, os.path.join(target, "shm"), "none", sandbox.MS_BIND)
    message = spec.get("terminationMessagePath") or ""
    if message.startswith("/dev/"):
        _bind(spec["terminationMessageFile"], target + message[len("/dev") :])
    for mount in spec.get("mounts") or []:
        path = target + mount["target"][len("/dev") :]
        if mount["target"].startswith("/dev/") and not os.path.lexists(path):
            _mount_point(mount["source"], path)


def _bind(source: str, target: str) -> None:
    if os.path.exists(source):
        _mount_point(source, target)
        sandbox.mount(source, target, "none", sandbox.MS_BIND | sandbox.MS_REC)


def _mount_point(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
