"""Finds the user's private Slurm of this machine (``hpk slurm up``), so that nobody has to set SLURM_CONF for HPK's own commands."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from hpk import paths

#: In the order in which they start.
DAEMONS = ("munged", "slurmctld", "slurmd")


def host() -> str:
    """Short name of this machine, as Slurm takes it."""
    return socket.gethostname().split(".")[0]


def folder(where: paths.Paths) -> paths.SlurmDir:
    """Folder of this machine's private Slurm, whether there is one or not."""
    return where.slurm_dir(host())


def daemon_pid(private: paths.SlurmDir, daemon: str) -> int:
    """Process id of the running ``daemon`` of ``private``; 0: it does not run. The number in a stale pid file may be anybody's."""
    try:
        with open(private.pid(daemon), encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
    except (OSError, ValueError):
        return 0
    mark = f"--socket={private.munge_socket}" if daemon == "munged" else private.conf
    return pid if os.path.basename(words[0]) == daemon and mark in words else 0


def environment(where: paths.Paths, environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to ``environ`` for Slurm's commands: SLURM_CONF of the private Slurm when it runs and the user named no other."""
    if environ.get("SLURM_CONF"):
        return {}
    private = folder(where)
    return {"SLURM_CONF": private.conf} if daemon_pid(private, "slurmctld") else {}
