"""What the supervisor makes on its node before the first container, and removes at the end."""

from __future__ import annotations

import fcntl
import os
import socket
import time

from hpk import files, sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


#: Age in seconds from which a folder that nobody holds is what a killed job left behind.
STALE = 600.0


class Scratch:
    """The job's private folders: ``disk`` on node-local disk, ``memory`` below /dev/shm. Both 0700, both removed by remove().

    Where they cannot be made there, and for ranks on several nodes, they are in the Pod's folder.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        name = f"hpk-{plan['uid']}"
        if any(spec.get("mpi") for spec in [*plan.get("initContainers", []), *plan["containers"]]):
            # ranks on other nodes see the shared home only
            self.bases = []
            self.disk = _fallback(plan["podDir"], "scratch")
            self.memory = _fallback(self.disk, "shm")
            self._make_shm()
            return
        bases = [os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"]  # noqa: S108
        self.bases = [base for base in bases if base]
        self.disk = _private_folder(self.bases, name) or _fallback(plan["podDir"], "scratch")
        self.memory = _private_folder(["/dev/shm"], name) or _fallback(self.disk, "shm")  # noqa: S108
        self._make_shm()

    def _make_shm(self) -> None:
        shm = os.path.join(self.memory, ".shm")  # no volume can have this name
        os.mkdir(shm)
        os.chmod(shm, 0o1777)  # noqa: S103 - as /dev/shm is everywhere

    def remove_stale(self) -> None:
        """Begin to clear away what killed jobs left beside our folders; the process that does it is reaped with all others."""
        if os.fork() == 0:
            try:
                remove_stale([*self.bases, "/dev/shm"])  # noqa: S108
            finally:
                os._exit(0)

    def remove(self) -> None:
        for path in (self.memory, self.disk):
            remove_tree(path)


def _private_folder(bases: list[str], name: str) -> str | None:
    """Make a new folder that only we can enter, in the first base that allows it. A folder with a guessed name is never trusted."""
    for base in bases:
        path = os.path.join(base, f"{name}-{os.urandom(4).hex()}")
        try:
            os.mkdir(path, 0o700)
        except OSError:
            continue
        _hold(path)
        return path
    return None


def _hold(path: str) -> bool:
    """Lock a folder for as long as this process lives (flock(2)). False: another process holds it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return False
    return True  # the descriptor stays open on purpose


def remove_stale(bases: list[str]) -> None:
    """Remove what our jobs left in ``bases`` when their node or all of their processes were killed. For a forked child."""
    for base in bases:
        try:
            with os.scandir(base) as entries:
                found = [entry.path for entry in entries if entry.name.startswith("hpk-") and entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        for path in found:
            try:
                status = os.stat(path, follow_symlinks=False)
                if status.st_uid == os.getuid() and time.time() - status.st_mtime > STALE and _hold(path):
                    remove_tree(path)
            except OSError:
                continue  # it has just been removed


def _fallback(parent: str, name: str) -> str:
    path = os.path.join(parent, name)
    remove_tree(path)
    os.makedirs(path, mode=0o700)
    return path


def remove_tree(path: str) -> None:
    """Remove a folder of ours, whatever modes a container has given to what is inside. What cannot be removed is left."""
    try:
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    _unlink(entry.path)
        os.rmdir(path)
    except OSError:
        pass


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def address(kubelet: dict[str, str]) -> str:
    """This node's address: the one from which the kubelet is reached. No packet is sent to find out."""
    try:
        endpoint = files.read_json(kubelet["endpointFile"]) or {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((endpoint["address"], int(endpoint["port"])))
            found = str(probe.getsockname()[0])
        if not found.startswith("127."):
            return found
    except (OSError, KeyError, ValueError, TypeError):
        pass  # no kubelet now: the host's own name has to do
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def replace_values(value: Any, values: dict[str, str]) -> Any:
    """Put the job's own values in the place of the plan's sentinels (hpk/kubelet/podplan.py), in all texts of ``value``."""
    if isinstance(value, str):
        if "\ufdd0" in value:
            for name, text in values.items():
                value = value.replace(f"\ufdd0{name}\ufdd1", text)
        return value
    if isinstance(value, list):
        return [replace_values(item, values) for item in value]
    if isinstance(value, dict):
        return {key: replace_values(item, values) for key, item in value.items()}
    return value


def name_users(box: sandbox.Sandbox, plan: dict[str, Any], folder: str) -> None:
    """Let the runtime find the containers' users: bind a passwd and a group file with them over the node's, in the Pod's namespace.

    The runtime refuses to start for an id that has no entry, and copies the entry that it finds into the container.
    """
    if "mnt" not in box.fds:
        return
    users, groups = {}, {}
    for spec in [*plan.get("initContainers", []), *plan["containers"]]:
        uid, gid = int(spec.get("runAsUser") or 0), int(spec.get("runAsGroup") or 0)
        if uid:
            name = spec.get("userName") or str(uid)
            users[uid] = f"{'u' if name.isdigit() else ''}{name}:x:{uid}:{gid}::{spec.get('home') or '/'}:/bin/sh"
        if gid:
            groups[gid] = f"g{gid}:x:{gid}:"
    bound = {}
    for path, entries in (("/etc/passwd", users), ("/etc/group", groups)):
        if entries:
            with open(path, encoding="utf-8", errors="replace") as file:
                kept = [line.rstrip("\n") for line in file if line.count(":") >= 3 and line.split(":")[2] not in map(str, entries)]
            bound[path] = os.path.join(folder, os.path.basename(path))
            files.write_atomic(bound[path], "\n".join([*kept, *entries.values()]) + "\n", mode=0o644)
    if not bound:
        return
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.enter(box)
            for path, source in bound.items():
                sandbox.mount(source, path, "none", sandbox.MS_BIND)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1] != 0:
        raise sandbox.SandboxError("cannot bind a passwd file with the containers' users over the node's")
