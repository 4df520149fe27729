"""Accounts of the machine that the bed needs, and folders that belong to them."""

from __future__ import annotations

import os
import pwd

from tests.testbed import commands, layout


def ensure() -> None:
    """Make alice and bob: ordinary users without subordinate ids. Their homes exist in the beds only."""
    for user in layout.USERS:
        try:
            pwd.getpwnam(user)
        except KeyError:
            no_subids = ["-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0"]
            commands.run(["useradd", "--no-create-home", "--user-group", "--shell", "/bin/bash", *no_subids, user])


def folder(path: str, owner: str, mode: int = 0o755) -> None:
    """Make a folder with this owner and mode; an existing one is left as it is."""
    if not os.path.isdir(path):
        entry = pwd.getpwnam(owner)
        os.makedirs(path)
        os.chown(path, entry.pw_uid, entry.pw_gid)
        os.chmod(path, mode)


def homes(bed: layout.Layout) -> None:
    """Make the users' homes, each with the mount point of the tree."""
    for user in layout.USERS:
        folder(f"{bed.home}/{user}", user, 0o700)
        folder(f"{bed.home}/{user}/hpk", "root")
