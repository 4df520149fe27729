"""Volumes and files that only the job can make: on its node's disk, in its memory, or with its addresses in them.

The plan's ``jobVolumes`` (hpk/kubelet/podplan.py: JobVolume) say what; here is how.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class VolumeError(Exception):
    """A volume cannot be made now; the text is the Event's (reason FailedMount). To be tried again, as the kubelet does."""


#: What a hostPath type asks for, in the kubelet's words (pkg/volume/hostpath), and the test for it.
_TYPES = {
    "Directory": ("a directory", stat.S_ISDIR),
    "DirectoryOrCreate": ("a directory", stat.S_ISDIR),
    "File": ("a file", stat.S_ISREG),
    "FileOrCreate": ("a file", stat.S_ISREG),
    "Socket": ("a socket file", stat.S_ISSOCK),
    "CharDevice": ("a character device", stat.S_ISCHR),
    "BlockDevice": ("a block device", stat.S_ISBLK),
}


def make(volume: dict[str, Any]) -> None:
    """Make or check one volume; harmless when repeated. Raises VolumeError."""
    try:
        {"emptyDir": _empty_dir, "hostPath": _host_path, "subPath": _sub_path, "hosts": _hosts}[volume["kind"]](volume)
    except OSError as error:
        raise VolumeError(_setup_failed(volume, str(error))) from error


def _setup_failed(volume: dict[str, Any], text: str) -> str:
    return f'MountVolume.SetUp failed for volume "{volume["name"]}" : {text}'


def _private_parents(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)


def _empty_dir(volume: dict[str, Any]) -> None:
    path = volume["path"]
    _private_parents(path)
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    os.chmod(path, volume.get("mode") or 0o777)  # the umask must not decide


def _host_path(volume: dict[str, Any]) -> None:
    path, kind = volume["path"], volume.get("type") or ""
    if kind == "DirectoryOrCreate" and not os.path.lexists(path):
        os.makedirs(path, mode=0o755, exist_ok=True)
    elif kind == "FileOrCreate" and not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    if not kind:
        if not os.path.exists(path):
            raise VolumeError(_setup_failed(volume, f"hostPath: {path} does not exist on this node"))
        return
    words, test = _TYPES[kind]
    try:
        good = test(os.stat(path).st_mode)
    except FileNotFoundError:
        good = False
    if not good:
        raise VolumeError(_setup_failed(volume, f"hostPath type check failed: {path} is not {words}"))


def _sub_path(volume: dict[str, Any]) -> None:
    """Make the folder ``subPath`` below ``base`` step by step, never through a link: a container could have planted one."""
    parts = [part for part in volume["subPath"].split("/") if part not in ("", ".")]
    if ".." in parts:
        raise VolumeError(_setup_failed(volume, f"subPath {volume['subPath']} must not contain .."))
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(volume["base"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            try:
                os.mkdir(part, 0o750, dir_fd=folder)
                os.chmod(part, 0o777 & os.fstat(folder).st_mode, dir_fd=folder)
            except FileExistsError:
                if last and stat.S_ISREG(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
                    return  # a file may be mounted as well
            try:
                below = os.open(part, flags, dir_fd=folder)
            except OSError as error:
                if not _link_inside(volume["base"], parts[: number + 1]):
                    raise VolumeError(_setup_failed(volume, f"subPath {volume['subPath']} leaves the volume")) from error
                below = os.open(part, flags & ~os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
    finally:
        os.close(folder)


def _link_inside(base: str, parts: list[str]) -> bool:
    real = os.path.realpath(os.path.join(base, *parts))
    return os.path.commonpath([real, os.path.realpath(base)]) == os.path.realpath(base)


def _hosts(volume: dict[str, Any]) -> None:
    content = volume["content"]
    if volume.get("nodeHosts"):
        try:
            with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
                content += file.read()
        except FileNotFoundError:
            pass
    _private_parents(volume["path"])
    with open(volume["path"], "w", encoding="utf-8") as file:
        file.write(content)
    os.chmod(volume["path"], 0o644)
