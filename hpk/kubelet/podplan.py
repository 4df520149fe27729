"""What one Pod becomes: plain data between deciding (plan.py) and writing (script.py), with no I/O on either side."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from typing import Any

#: Values that only the job knows stand in the plan as texts between two Unicode noncharacters, which nobody's YAML can mean.
#: The job script replaces them by the variables of these names (shell_quote), the supervisor by its own values.
POD_IP = "\ufdd0POD_IP\ufdd1"
HOST_IP = "\ufdd0HOST_IP\ufdd1"
#: Private folder of the job on node-local disk, removed when the job ends: emptyDir volumes, writable layers.
SCRATCH = "\ufdd0SCRATCH\ufdd1"
#: Private folder of the job in memory (below /dev/shm): emptyDir with medium Memory.
SHM = "\ufdd0SHM\ufdd1"

VARIABLES: Mapping[str, str] = {POD_IP: "HPK_POD_IP", HOST_IP: "HPK_HOST_IP", SCRATCH: "HPK_SCRATCH", SHM: "HPK_SHM"}


_SENTINEL = re.compile("|".join(f"({re.escape(sentinel)})" for sentinel in VARIABLES))


def shell_quote(word: str) -> str:
    """Quote ``word`` for a shell: everything is literal, except the values above, which become ``"${HPK_...}"``."""
    if not word:
        return "''"
    parts = (part for part in _SENTINEL.split(word) if part)
    return "".join(f'"${{{VARIABLES[part]}}}"' if part in VARIABLES else shlex.quote(part) for part in parts)


@dataclasses.dataclass(frozen=True)
class JobVolume:
    """Something that is made or checked on the compute node before the first container starts.

    ``kind``: ``emptyDir`` (folder ``path``), ``hostPath`` (check or create ``path`` by ``type``), ``subPath`` (folder ``sub_path``
    below ``base``, never through a link that leaves it), ``hosts`` (file ``path`` with ``content``, the node's own file after it
    when ``node_hosts``).
    """

    kind: str
    name: str
    path: str = ""
    type: str = ""
    medium: str = ""
    size_limit: int | None = None
    """Bytes."""
    limit_text: str = ""
    """The limit as the Pod spells it."""
    mode: int = 0o777
    base: str = ""
    sub_path: str = ""
    content: str = ""
    node_hosts: bool = False


@dataclasses.dataclass(frozen=True)
class Mount:
    """A bind mount into a container: an existing absolute path on the host and an absolute path in the container."""

    source: str
    target: str
    read_only: bool = False


@dataclasses.dataclass(frozen=True)
class ContainerPlan:
    """One container, with everything resolved: image, command line, environment, mounts, ids."""

    name: str
    image: str
    """As the Pod spells it."""
    image_id: str
    """``<repository>@sha256:...``, as status.containerStatuses[].imageID shows it."""
    image_path: str
    """SIF file or unpacked folder, absolute."""
    command: tuple[str, ...]
    """Entrypoint and arguments merged from image and Pod (API field ``command``/``args``), $(VAR) expanded."""
    working_dir: str = "/"
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The whole environment: image's, service variables', envFrom's, env's, in rising priority. HOME, PATH, HOSTNAME included."""
    mounts: tuple[Mount, ...] = ()
    run_as_user: int = 0
    run_as_group: int = 0
    supplemental_groups: tuple[int, ...] = ()
    user_name: str = "root"
    """Name of ``run_as_user`` in the image's passwd, or the number as text."""
    home: str = "/"
    read_only_root: bool = False
    restart_policy: str | None = None
    """Container-level policy; ``Always`` on an init container makes it a native sidecar (KEP-753)."""
    restart_policy_rules: tuple[Mapping[str, Any], ...] = ()
    lifecycle: Mapping[str, Any] | None = None
    liveness_probe: Mapping[str, Any] | None = None
    readiness_probe: Mapping[str, Any] | None = None
    startup_probe: Mapping[str, Any] | None = None
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: str = "File"
    stop_signal: str = "SIGTERM"
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    ports: tuple[Mapping[str, Any], ...] = ()
    gpu: str = ""
    """``nvidia`` or ``rocm``: which of singularity's GPU options is needed."""
    mpi_flags: tuple[str, ...] | None = None
    """Words of the annotation ``slurm-job.hpk.io/mpi-flags``; None: no MPI step. Begins with ``mpirun`` where the user wants that."""


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """The allocation of a Pod. Zero, empty and None leave the choice to Slurm's and the site's defaults."""

    name: str
    comment: str
    cpus: int = 0
    memory_mb: int = 0
    gres: tuple[str, ...] = ()
    """``gpu:1`` and the like."""
    time_limit: int = 0
    """Seconds."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    node_list: str = ""
    flags: tuple[str, ...] = ()
    """sbatch flags of the config and then of the annotation ``slurm-job.hpk.io/flags``, one complete flag each; they win."""


@dataclasses.dataclass(frozen=True)
class PodPlan:
    uid: str
    namespace: str
    name: str
    node_name: str
    pod_dir: str
    job: SlurmJob
    containers: tuple[ContainerPlan, ...]
    init_containers: tuple[ContainerPlan, ...] = ()
    job_volumes: tuple[JobVolume, ...] = ()
    hostname: str = ""
    namespaces: tuple[str, ...] = ("user", "mnt", "ipc", "uts")
    """Namespaces of the sandbox (records.py: plan)."""
    restart_policy: str = "Always"
    termination_grace_period: int = 30
    active_deadline: int | None = None
    start_time: str = ""
    """status.startTime, RFC 3339."""
    kubelet: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """endpointFile, caFile, tokenFile."""
