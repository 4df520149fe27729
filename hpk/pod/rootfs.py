"""A container's writable root file system: the kernel's overlay over the mounted image, made before the runtime starts.

The runtime's own way (--overlay over a SIF) is fuse-overlayfs: one process more for each container, and several times slower with
many small files. It is what remains where the kernel (before 5.11) or the disk of the writable layer (no user xattrs, NFS) does
not allow this one. For a forked child that is root of the Pod's user namespace, in a mount namespace of its own.
"""

from __future__ import annotations

import os

from hpk import sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Mount points that the runtime needs in a writable image, since it makes none there.
_FOLDERS = ("/dev", "/proc", "/sys", "/etc", "/tmp", "/var/tmp", "/.singularity.d/env")  # noqa: S108
_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/etc/passwd", "/etc/group", "/.singularity.d/env/99-base.sh")


def mount(image: str, layer: str, spec: dict[str, Any]) -> str | None:
    """Mount ``image`` with the writable folder ``layer`` over it. Returns where, or None when it cannot be done here."""
    if "," in layer or ":" in layer or "\\" in layer or "," in image or ":" in image:
        return None  # the options of mount(2) would need quoting
    upper, work, merged = (os.path.join(layer, name) for name in ("upper", "work", "root"))
    try:
        for path in (upper, work, merged):
            os.makedirs(path, mode=0o755, exist_ok=True)
        # without these, overlayfs cannot tell a folder that was removed and made again from the image's
        os.setxattr(upper, "user.hpk", b"1")
        sandbox.mount("overlay", merged, "overlay", 0, f"lowerdir={image},upperdir={upper},workdir={work},userxattr")
    except OSError:
        return None
    _make_mount_points(merged, spec)
    return merged


def _make_mount_points(root: str, spec: dict[str, Any]) -> None:
    """Make what is to be mounted on, and the working directory, as containerd does. Links of the image are followed inside it."""
    targets = [(mount["target"], os.path.isdir(mount["source"])) for mount in spec.get("mounts") or []]
    targets += [(path, True) for path in _FOLDERS] + [(path, False) for path in _FILES]
    if spec.get("workingDir"):
        targets.append((spec["workingDir"], True))
    message = spec.get("terminationMessagePath")
    if message:
        targets.append((message, False))
    outside = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    working_dir = os.getcwd()
    try:
        os.chroot(root)
        os.chdir("/")
        for path, folder in targets:
            if not path.startswith(("/dev/", "/proc/", "/sys/")):
                _make(path, folder)
    finally:
        os.fchdir(outside)
        os.chroot(".")
        os.chdir(working_dir)
        os.close(outside)


def _make(path: str, folder: bool) -> None:
    try:
        if os.path.exists(path):
            return
        if folder:
            os.makedirs(path, mode=0o755)
            if os.path.basename(path) == "tmp":
                os.chmod(path, 0o1777)  # noqa: S103 - as /tmp is everywhere
        else:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    except OSError:
        pass  # a link that leads nowhere, a file where a folder should be: the runtime says so in its own words
