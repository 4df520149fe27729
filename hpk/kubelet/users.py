"""Who a container runs as: the Pod's security context over the image's USER, looked up in the image's passwd and group. Pure.

Source: kubelet's verifyRunAsNonRoot, containerd's WithUser and WithAdditionalGIDs; the messages are upstream's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hpk.kubelet import env

Object = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Identity:
    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    """In the image's passwd; the number as text where it is not there."""
    home: str


@dataclasses.dataclass(frozen=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


def identity(pod: Object, container: Object, image_user: str, passwd: str, group: str) -> Identity:
    """Return who ``container`` runs as. Raises ConfigError: the container then waits as CreateContainerConfigError."""
    over, under = container.get("securityContext") or {}, pod["spec"].get("securityContext") or {}

    def setting(name: str) -> Any:
        return over[name] if over.get(name) is not None else under.get(name)

    users = _users(passwd)
    run_as_user, run_as_group = setting("runAsUser"), setting("runAsGroup")
    user_part, _, group_part = image_user.partition(":")
    if setting("runAsNonRoot"):
        _check_non_root(pod, container, run_as_user, user_part, users)
    if run_as_user is not None:
        user, group_part = _by_id(users, int(run_as_user)), ""
    elif user_part.isascii() and user_part.isdigit():
        user = _by_id(users, int(user_part))
    elif user_part:
        named = next((item for item in users if item.name == user_part), None)
        if named is None:
            raise env.ConfigError(f"unable to find user {user_part}: no matching entries in passwd file of the image")
        user = named
    else:
        user = _by_id(users, 0)
    gid = user.gid if not group_part else _group_id(group_part, group)
    if run_as_group is not None:
        gid = int(run_as_group)
    groups = [int(item) for item in under.get("supplementalGroups") or []]
    if under.get("fsGroup") is not None:
        groups.append(int(under["fsGroup"]))
    if under.get("supplementalGroupsPolicy", "Merge") != "Strict":
        groups += [number for number, members in _groups(group) if user.name in members]
    return Identity(user.uid, gid, tuple(dict.fromkeys(number for number in groups if number != gid)), user.name, user.home or "/")


def _check_non_root(pod: Object, container: Object, run_as_user: Any, image_user: str, users: list[_User]) -> None:
    metadata = pod["metadata"]
    where = f'(pod: "{metadata["name"]}_{metadata.get("namespace", "")}({metadata.get("uid", "")})", container: {container["name"]})'
    if run_as_user is not None:
        if int(run_as_user) == 0:
            raise env.ConfigError(f"container's runAsUser breaks non-root policy {where}")
    elif not image_user or image_user in ("0", "root"):
        if image_user == "root":
            raise env.ConfigError(
                f"container has runAsNonRoot and image has non-numeric user (root), cannot verify user is non-root {where}"
            )
        raise env.ConfigError(f"container has runAsNonRoot and image will run as root {where}")
    elif not image_user.isdigit():
        raise env.ConfigError(
            f"container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {where}"
        )


def _by_id(users: list[_User], uid: int) -> _User:
    fallback = _User("root" if uid == 0 else str(uid), uid, 0, "/")
    return next((item for item in users if item.uid == uid), fallback)


def _users(passwd: str) -> list[_User]:
    found = []
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2].isdigit() and fields[3].isdigit():
            found.append(_User(fields[0], int(fields[2]), int(fields[3]), fields[5]))
    return found


def _groups(group: str) -> list[tuple[int, list[str]]]:
    return [
        (int(fields[2]), fields[3].split(","))
        for fields in (line.split(":") for line in group.splitlines())
        if len(fields) >= 4 and fields[2].isdigit()
    ]


def _group_id(name: str, group: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] == name and fields[2].isdigit():
            return int(fields[2])
    raise env.ConfigError(f"unable to find group {name}: no matching entries in group file of the image")
