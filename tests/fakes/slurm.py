"""A Slurm that says what a test tells it to (tests/fakes/bin/slurm), for outages and words that a real one seldom has."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from hpk import config
from hpk.slurm import commands

BIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin")


class FakeSlurm:
    def __init__(self, folder: pathlib.Path, *, timeout: float = 5.0) -> None:
        self._folder = folder
        self.answers()
        # variables of an enclosing job and of the user's habits, which must not reach the commands
        environ = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "FAKE_SLURM": str(folder),
            "SLURM_CONF": "/etc/slurm/slurm.conf",
            "SLURM_JOB_ID": "7",
            "SLURM_MEM_PER_NODE": "2048",
            "SBATCH_PARTITION": "wrong",
            "SQUEUE_FORMAT": "%i",
        }
        self.slurm = commands.Slurm(config.Config(slurm=config.SlurmConfig(timeout=timeout, environment=("FAKE_SLURM",))), environ)

    def answers(self, *answers: dict[str, Any]) -> None:
        """The conversation from now on."""
        path = self._folder / "answers.json"
        path.with_suffix(".tmp").write_text(json.dumps(answers))
        path.with_suffix(".tmp").rename(path)

    @property
    def calls(self) -> list[dict[str, Any]]:
        path = self._folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def argvs(self, command: str) -> list[list[str]]:
        return [call["argv"] for call in self.calls if call["argv"][0] == command]


def squeue(*jobs: dict[str, Any]) -> str:
    """squeue's output for these jobs."""
    names = ("id", "state", "reason", "nodes", "host", "submitted", "start", "end", "name", "dir", "comment", "end of record")
    default = {"state": "RUNNING", "reason": "None", "nodes": "c1", "host": "c1", "submitted": "100", "start": "N/A", "end": "N/A"}
    return "".join(commands.RECORD + commands.FIELD.join(str({**default, **job}.get(name, "")) for name in names) + "\n" for job in jobs)
