"""The annotations with which a Pod speaks to Slurm. Pure: text in, words out; nothing is ever evaluated by a shell.

``slurm-job.hpk.io/flags``      flags of sbatch for the Pod's job: ``--ntasks=8 --nodes=2 -p gpu``
``slurm-job.hpk.io/mpi-flags``  the main container's command is started on all tasks, by ``srun`` with these flags, or by ``mpirun``
                                where that is the first word
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from hpk import errors

FLAGS = "slurm-job.hpk.io/flags"
MPI_FLAGS = "slurm-job.hpk.io/mpi-flags"

#: Short options of sbatch(1) that stand for a long one.
_SHORT = {
    "A": "account",
    "a": "array",
    "B": "extra-node-info",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "F": "nodefile",
    "G": "gpus",
    "H": "hold",
    "h": "help",
    "i": "input",
    "J": "job-name",
    "k": "no-kill",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "O": "overcommit",
    "o": "output",
    "p": "partition",
    "Q": "quiet",
    "q": "qos",
    "S": "core-spec",
    "s": "oversubscribe",
    "t": "time",
    "V": "version",
    "v": "verbose",
    "W": "wait",
    "w": "nodelist",
    "x": "exclude",
}
#: Short options without a value.
_SWITCHES = frozenset("HhkOQsVvW")

#: Options on which it rests that a Pod has one job, never two, and that the job is found again: HPK sets them itself.
_OWNED = {
    "array": "a Pod is one job",
    "chdir": "the job is found by it",
    "clusters": "the job is looked for on the local cluster only",
    "comment": "the job is found by it",
    "error": "it belongs to the Pod's folder",
    "export": "the job's environment is always clean",
    "export-file": "the job's environment is always clean",
    "get-user-env": "the job's environment is always clean",
    "gid": "the job runs as the user",
    "help": "it submits no job",
    "input": "containers' input belongs to kubectl attach",
    "job-name": "it is the Pod's namespace and name",
    "no-requeue": "it is set already",
    "open-mode": "it belongs to the Pod's folder",
    "output": "it belongs to the Pod's folder",
    "parsable": "the answer of sbatch is read by the kubelet",
    "requeue": "the Pod's controller replaces it, not Slurm",
    "signal": "the Pod's terminationGracePeriodSeconds sets it",
    "test-only": "it submits no job",
    "uid": "the job runs as the user",
    "usage": "it submits no job",
    "version": "it submits no job",
    "wait": "the kubelet follows the job itself",
    "workdir": "the job is found by it",
    "wrap": "the job runs the Pod's containers",
}


def slurm_flags(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return the Pod's sbatch flags, each as one ``--option`` or ``--option=value``. Raises Rejected."""
    return parse_flags(annotations.get(FLAGS, ""), f"metadata.annotations[{FLAGS}]")


def parse_flags(text: str, where: str) -> tuple[str, ...]:
    """Split a line of sbatch flags; ``where`` names it in messages. Raises Rejected for what cannot be or must not be a flag."""
    words = _words(text, where)
    flags: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
        elif re.fullmatch(r"-[A-Za-z].*", word):
            letter, value = word[1], word[2:].removeprefix("=")
            name, equals = _SHORT.get(letter, ""), "=" if value else ""
            if not name:
                raise _refused(where, f"{word!r} is not a flag of sbatch")
            if letter in _SWITCHES and value and letter != "s":
                raise _refused(where, f"{word!r}: write single-letter flags one by one, or use the long names")
            if not value and letter not in _SWITCHES and words:
                value, equals = words.pop(0), "="
        else:
            raise _refused(where, f"{word!r} is not a flag: flags begin with - or --")
        _check_name(name, where)
        if name and not equals and words and not words[0].startswith("-"):
            value, equals = words.pop(0), "="
        flags.append(f"--{name}{equals}{value}")
    return tuple(flags)


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise _refused(where, f"'--{name}' is not a flag of sbatch")
    for owned, why in _OWNED.items():
        # sbatch takes an unambiguous beginning for the whole option, so a beginning of an owned one is refused as well.
        if owned == name or (len(name) >= 2 and owned.startswith(name)):
            raise _refused(where, f"--{name} cannot be set, {why}")


def mpi_flags(annotations: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the words of the MPI annotation, None when the Pod has none. Raises Rejected."""
    if MPI_FLAGS not in annotations:
        return None
    where = f"metadata.annotations[{MPI_FLAGS}]"
    words = _words(annotations[MPI_FLAGS], where)
    for number, word in enumerate(words):
        if not word.startswith("-") and number == 0 and word not in ("mpirun", "srun"):
            raise _refused(where, f"{word!r} is not a flag; the first word may be srun or mpirun")
    return tuple(words[1:] if words[:1] == ["srun"] else words)


def _words(text: Any, where: str) -> list[str]:
    text = str(text)
    bad = re.search(r"[\x00-\x1f\x7f\u0085\u2028\u2029]", text)
    if bad:
        raise _refused(where, f"contains a line break or control character ({bad.group()!r}); write the flags on one line")
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise _refused(where, f"cannot be split into words: {str(exc).lower()}") from exc


def _refused(where: str, problem: str) -> errors.Rejected:
    return errors.Rejected("InvalidSlurmFlags", f"Pod was rejected: {where}: {problem}")
