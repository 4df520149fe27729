"""A part of the control plane as data: how it is started, what must run before it, how to know that it works.

``Run`` holds the facts of one run (who, where, which ports); the functions in components/ turn it into Components; runner.py
starts them. Nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpk import config as configuration
from hpk import paths as hpk_paths


@dataclasses.dataclass(frozen=True)
class Check:
    """A request that answers 200 when the component is ready, made with a client certificate of our own where one is asked for."""

    url: str
    ca: str = ""
    """CA that must have signed the server's certificate; empty for plain HTTP (loopback only, and nothing secret in the answer)."""
    cert: str = ""
    key: str = ""
    accept: Callable[[dict[str, Any], float], bool] | None = None
    """Looks at the answer (JSON) and the time at which the process was started (seconds since the epoch): for a component that
    shows that it works by what it writes to the API server. What an earlier process wrote there must not count."""


@dataclasses.dataclass(frozen=True)
class Component:
    """One process of the control plane."""

    name: str
    summary: str
    """What ``hpk up`` calls it, e.g. "API server"."""
    argv: tuple[str, ...]
    links: tuple[str, ...] = ()
    """Names of the components that must be ready before this one is started."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Added to the environment that all components get (environment())."""
    ready: Check | None = None
    """None: ready as soon as it runs."""
    ready_timeout: float = 60.0
    """Seconds it may take to become ready before it is started again."""
    stop_timeout: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    orphan_signal: signal.Signals = signal.SIGTERM
    """What the kernel sends when the runner dies without ending it."""
    certificates: tuple[str, ...] = ()
    """Leaves of the PKI that it reads when it starts: it is restarted when one of them is renewed."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The facts of one run of the control plane, from which all else follows."""

    paths: hpk_paths.Paths
    config: configuration.Config
    runtime: str
    """Path of apptainer or singularity; empty when ``controlPlane.binaries`` is set."""
    image: str
    """The SIF; empty as above."""
    python: str
    """Interpreter that runs hpk itself."""
    host: str
    """Short name of the node."""
    host_names: tuple[str, ...]
    """All names by which others may call the node."""
    address: str
    """Address by which compute and login nodes reach the node."""
    ports: Mapping[str, int]
    """Port by name: apiserver, etcd, etcd-peer, kcm, dns, dns-ready."""
    resolvers: tuple[str, ...] = ()
    """The site's name servers, to which CoreDNS forwards."""
    job_id: str = ""
    """Slurm job that this runs in; empty outside Slurm."""

    @property
    def api_server(self) -> str:
        """Base URL of the API server."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{self.ports['apiserver']}"

    def pki(self, name: str) -> str:
        """Path of a file of the PKI."""
        return os.path.join(self.paths.pki, name)

    @property
    def etcd_dir(self) -> str:
        return self.config.control_plane.etcd_dir or self.paths.etcd


#: Names of the ports that a run needs, each with the address kind it is bound to.
PORTS = {"apiserver": "node", "etcd": "loopback", "etcd-peer": "loopback", "kcm": "loopback", "dns": "loopback", "dns-ready": "loopback"}


def in_container(
    run: Run, program: str, flags: Sequence[str], *, writable: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return the command line that runs ``program`` of the control-plane image with ``flags``.

    The container sees the node's network and, of the file system, the PKI, the kubeconfigs and the folder of this run
    read-only, and the folders ``writable``. Home, environment and everything else of the host stay outside.
    """
    if run.config.control_plane.binaries:
        words = [f"{name}={value}" for name, value in sorted((env or {}).items())]
        start = ["/usr/bin/env", *words] if words else []
        return (*start, os.path.join(run.config.control_plane.binaries, program), *flags)
    binds = [f"{path}:{path}:ro" for path in (run.paths.pki, run.paths.kubeconfigs, run.paths.run)]
    binds += [f"{path}:{path}" for path in writable]
    argv = [run.runtime, "-s", "exec", "--contain", "--no-home", "--cleanenv", "--no-eval"]
    for bind in binds:
        argv += ["--bind", bind]
    for name, value in sorted((env or {}).items()):
        argv += ["--env", f"{name}={value}"]
    return (*argv, run.image, f"/usr/bin/{program}", *flags)


def without_job(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment ``own`` without what Slurm says in it about the job that we are in."""
    private = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "PMI_", "PMIX_")
    return {name: value for name, value in own.items() if name == "SLURM_CONF" or not name.startswith(private)}


def environment(run: Run, own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the components: ``own`` without what describes our Slurm job, with the state directory named.

    The kubelet's sbatch would otherwise take the control plane's memory, task count and the like for defaults of each Pod.
    """
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    kept = without_job(own)
    path = kept.get("PYTHONPATH", "")
    return {**kept, "HPK_HOME": run.paths.root, "PYTHONPATH": package_root + (f":{path}" if path else "")}


def start_order(components: Sequence[Component]) -> list[Component]:
    """Return ``components`` such that each comes after those it links to, otherwise in the order given.

    Raises ValueError for a link to a name that is not there, and for a circle: both are defects of ours.
    """
    by_name = {component.name: component for component in components}
    ordered: list[Component] = []
    done: set[str] = set()

    def visit(component: Component, above: tuple[str, ...]) -> None:
        if component.name in above:
            raise ValueError(f"components link in a circle: {' -> '.join((*above, component.name))}")
        if component.name in done:
            return
        for link in component.links:
            if link not in by_name:
                raise ValueError(f"component {component.name} links to {link}, which does not exist")
            visit(by_name[link], (*above, component.name))
        done.add(component.name)
        ordered.append(component)

    for component in components:
        visit(component, ())
    return ordered
