"""Every path below the state directory, in one place. docs/state-directory.md tells what each file is for.

Nothing here touches the disk; ``state_dir()`` and ``cache_dir()`` ask the environment.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

#: Format of the state directory, in the file ``version``. Raised when an older HPK could misread what a newer one wrote.
STATE_VERSION = 1

#: Settings of the site's administrators, read before the user's own; every key of hpk.yaml is allowed.
SITE_CONFIG = "/etc/hpk/hpk.yaml"


def state_dir(environ: Mapping[str, str] | None = None) -> str:
    """``$HPK_HOME``, or ``~/.hpk``. Absolute, since it goes into job scripts."""
    environ = os.environ if environ is None else environ
    return os.path.abspath(environ.get("HPK_HOME") or os.path.join(os.path.expanduser("~"), ".hpk"))


def cache_dir() -> str:
    """``$HPK_CACHE``, or ``hpk`` in the user's cache folder: what can be fetched or built again (programs of the control-plane image)."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "hpk")
    return os.path.abspath(os.environ.get("HPK_CACHE") or default)


@dataclasses.dataclass(frozen=True)
class PodDir:
    """The folder of one Pod: all that its job needs and all that it leaves. Mode 0700."""

    root: str

    @property
    def plan(self) -> str:
        """What the supervisor does (records.py: plan)."""
        return os.path.join(self.root, "plan.json")

    @property
    def script(self) -> str:
        """The job script, as given to sbatch."""
        return os.path.join(self.root, "job.sh")

    @property
    def output(self) -> str:
        """Standard output and error of the batch script: the supervisor's own words."""
        return os.path.join(self.root, "slurm.out")

    @property
    def submission(self) -> str:
        """What the kubelet knows of the Slurm job (records.py: submission)."""
        return os.path.join(self.root, "submission.json")

    @property
    def status(self) -> str:
        """The supervisor's last report (records.py: report)."""
        return os.path.join(self.root, "status.json")

    @property
    def token(self) -> str:
        """Secret with which the supervisor proves to the kubelet that it is this Pod's."""
        return os.path.join(self.root, "channel.token")

    @property
    def etc(self) -> str:
        """hosts, resolv.conf, hostname, passwd and group files that are bound into the containers."""
        return os.path.join(self.root, "etc")

    def env(self, container: str) -> str:
        """Environment of a container, sourced by its function in the script. Holds Secrets."""
        return os.path.join(self.root, "env", f"{container}.sh")

    def volume(self, name: str) -> str:
        return os.path.join(self.root, "volumes", name)

    def container(self, name: str) -> str:
        """Folder of one container: logs, writable layer when it has no node-local place, termination message."""
        return os.path.join(self.root, "containers", name)

    def log(self, container: str, restart: int) -> str:
        """CRI-format log of the container's ``restart``-th instance, counted from 0 (as /var/log/pods/.../N.log)."""
        return os.path.join(self.container(container), f"{restart}.log")

    def termination_message(self, container: str) -> str:
        return os.path.join(self.container(container), "termination-log")


@dataclasses.dataclass(frozen=True)
class SlurmDir:
    """The private Slurm of one machine (``hpk slurm up``). Mode 0700."""

    root: str

    @property
    def conf(self) -> str:
        """slurm.conf: what SLURM_CONF names. cgroup.conf lies beside it, as Slurm wants it."""
        return os.path.join(self.root, "etc", "slurm.conf")

    @property
    def client_conf(self) -> str:
        """slurm.conf for commands outside of jobs, where it has to differ."""
        return os.path.join(self.root, "etc", "client.conf")

    @property
    def cgroup_conf(self) -> str:
        return os.path.join(self.root, "etc", "cgroup.conf")

    @property
    def hosts(self) -> str:
        """What the daemons see as /etc/hosts where the machine's own name is not that of a loopback address."""
        return os.path.join(self.root, "etc", "hosts")

    @property
    def settings(self) -> str:
        """What stays the same between runs: {"cpus", "memoryMB", "slurmctldPort", "slurmdPort"}."""
        return os.path.join(self.root, "settings.json")

    @property
    def lock(self) -> str:
        """Held while daemons are started or stopped."""
        return os.path.join(self.root, "lock")

    @property
    def munge_key(self) -> str:
        """Secret by which the daemons and commands of this Slurm know one another."""
        return os.path.join(self.root, "munge.key")

    @property
    def munge_seed(self) -> str:
        return os.path.join(self.root, "munge.seed")

    @property
    def state(self) -> str:
        """slurmctld's queue."""
        return os.path.join(self.root, "state")

    @property
    def spool(self) -> str:
        """slurmd's running jobs: their scripts and sockets."""
        return os.path.join(self.root, "spool")

    @property
    def run(self) -> str:
        return os.path.join(self.root, "run")

    @property
    def munge_socket(self) -> str:
        return os.path.join(self.root, "run", "munge.sock")

    def pid(self, daemon: str) -> str:
        return os.path.join(self.root, "run", f"{daemon}.pid")

    @property
    def logs(self) -> str:
        return os.path.join(self.root, "log")

    def log(self, daemon: str) -> str:
        return os.path.join(self.root, "log", f"{daemon}.log")

    @property
    def finished_jobs(self) -> str:
        """One line for each job that ended (jobcomp/filetxt): this Slurm has no accounting."""
        return os.path.join(self.root, "log", "jobs.txt")


@dataclasses.dataclass(frozen=True)
class Paths:
    """Paths below one state directory."""

    root: str

    @classmethod
    def default(cls, environ: Mapping[str, str] | None = None) -> Paths:
        return cls(state_dir(environ))

    def _join(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    @property
    def version(self) -> str:
        return self._join("version")

    @property
    def config(self) -> str:
        return self._join("hpk.yaml")

    @property
    def kubeconfig(self) -> str:
        """The user's own kubeconfig (cluster admin), written when the cluster is ready."""
        return self._join("kubeconfig")

    @property
    def lock(self) -> str:
        """Owner and lease of the control plane that may write here."""
        return self._join("lock")

    @property
    def pki(self) -> str:
        return self._join("pki")

    @property
    def ca_cert(self) -> str:
        return self._join("pki", "ca.crt")

    @property
    def kubeconfigs(self) -> str:
        return self._join("kubeconfigs")

    def component_kubeconfig(self, component: str) -> str:
        """Kubeconfig of ``admin``, ``kubelet``, ``scheduler``, ``kube-controller-manager``."""
        return self._join("kubeconfigs", f"{component}.kubeconfig")

    @property
    def etcd(self) -> str:
        return self._join("etcd")

    @property
    def logs(self) -> str:
        return self._join("logs")

    def log(self, component: str) -> str:
        return self._join("logs", f"{component}.log")

    @property
    def run(self) -> str:
        """Facts of the present run: who listens where. Rewritten by each start."""
        return self._join("run")

    @property
    def kubelet_endpoint(self) -> str:
        """Where supervisors find the kubelet: {"address", "port", "serverName"} (records.py: endpoint)."""
        return self._join("run", "kubelet.json")

    @property
    def cluster_run(self) -> str:
        """The present control plane: {"jobID", "host", "address", "apiServer", "pid", "startedAt", "ready"}."""
        return self._join("run", "cluster.json")

    @property
    def ports(self) -> str:
        """Ports that the control plane used last, taken again when they are free: {name: port}."""
        return self._join("run", "ports.json")

    @property
    def submitted(self) -> str:
        """The job that ``hpk up`` submitted last: {"jobID"}."""
        return self._join("run", "submitted.json")

    @property
    def bin(self) -> str:
        return self._join("bin")

    @property
    def images(self) -> str:
        return self._join("images")

    @property
    def control_plane_image(self) -> str:
        return self._join("images", "control-plane.sif")

    @property
    def pods(self) -> str:
        return self._join("pods")

    @property
    def slurm(self) -> str:
        """The private Slurm of ``hpk slurm up``, one folder per host name."""
        return self._join("slurm")

    def slurm_dir(self, host: str) -> SlurmDir:
        return SlurmDir(self._join("slurm", host))

    def pod(self, namespace: str, name: str, uid: str) -> PodDir:
        """Folder of a Pod. A name may have 253 characters and a file name 255, so long names are cut: the UID makes it unique."""
        return PodDir(self._join("pods", f"{namespace}_{name}"[:200] + f"_{uid}"))
