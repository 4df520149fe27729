"""``hpk control-plane``: the control plane on this node, until SIGTERM or the end of the Slurm job (slurm/hpk.sbatch runs it).

Order: facts of the node, lock, certificates and kubeconfigs, components, the first API objects, node Ready; then the user's
kubeconfig is written and one line printed that sets KUBECONFIG. Standard output carries nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence

from hpk import config as configuration
from hpk import errors, files, paths, procs, tasks
from hpk.bootstrap import component, components, handover, jobs, kubeconfig, lock, logfiles, node, objects, pki, runner, statedir
from hpk.bootstrap.components import coredns, kube_apiserver
from hpk.kube import client as kube_client
from hpk.slurm import commands

log = logging.getLogger(__name__)

CERTIFICATE_CHECK_SECONDS = 24 * 3600.0

#: Kubeconfigs of the components: name -> leaf of the PKI.
KUBECONFIGS = {
    "admin": "admin",
    "kubelet": "kubelet-client",
    "scheduler": "scheduler",
    "kube-controller-manager": "kube-controller-manager",
    "coredns": "coredns",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and change nothing")


def facts(where: paths.Paths, config: configuration.Config) -> component.Run:
    """Look at the node and return the facts of this run. Raises InvalidInput, MissingTool, StateError."""
    binaries = config.control_plane.binaries
    for path in (where.root, config.control_plane.etcd_dir):
        if not binaries and re.search(r"[:,\s]", path):
            raise errors.InvalidInput(
                f"{path}: Apptainer cannot bind a path with a colon, a comma or a space", hint="set HPK_HOME to another one"
            )
    try:
        last = files.read_json(where.ports)
    except (OSError, ValueError):
        last = None
    address = node.address(config.control_plane.address)
    wanted = {name: address if kind == "node" else "127.0.0.1" for name, kind in component.PORTS.items()}
    port = config.control_plane.port
    return component.Run(
        paths=where,
        config=config,
        runtime="" if binaries else procs.container_runtime(),
        image="" if binaries else statedir.find_image(where, config),
        python=sys.executable,
        host=node.host_name(),
        host_names=node.names(),
        address=address,
        ports=node.choose_ports(wanted, node.last_ports(last, list(wanted)), {"apiserver": ("controlPlane.port", port)} if port else {}),
        resolvers=node.resolvers(),
        job_id=os.environ.get("SLURM_JOB_ID", ""),
    )


def certificates(run: component.Run) -> tuple[pki.Leaf, ...]:
    """Return the certificates that this run needs (pure)."""
    return pki.leaves(
        node_name=run.config.cluster.node_name,
        host_names=run.host_names,
        address=run.address,
        service_ip=kube_apiserver.service_ip(run.config.cluster.service_cidr),
        domain=run.config.cluster.domain,
    )


def _command(argv: Sequence[str]) -> str:
    """Return a command line for people: the program and its mode on the first line, then one flag with its value per line."""
    lines: list[str] = []
    for word in argv:
        if lines and (word.startswith("-") or word.startswith("/")) and not lines[-1].startswith(("--bind", "--env")):
            lines.append(shlex.quote(word))
        elif lines and (lines[-1] in ("--bind", "--env") or not word.startswith(("-", "/"))):
            lines[-1] += " " + shlex.quote(word)
        else:
            lines.append(shlex.quote(word))
    return " \\\n  ".join(lines)


def transcript(run: component.Run) -> str:
    """Return what a start does, as a person would type it (pure; ``hpk control-plane --dry-run``)."""
    lines = [
        f"# control plane of cluster {run.config.cluster.name} on {run.host} ({run.address})",
        f"# state: {run.paths.root}, format {paths.STATE_VERSION}",
        "",
        "# certificates, made or renewed where they do not fit",
        *(f"#   {leaf.describe()}" for leaf in certificates(run)),
        "",
        f"# kubeconfigs in {run.paths.kubeconfigs} for {run.api_server}: {', '.join(KUBECONFIGS)}",
        "",
        f"cat > {shlex.quote(coredns.corefile_path(run))} <<'EOF'",
        coredns.corefile(run).rstrip(),
        "EOF",
    ]
    for spec in components.build(run):
        after = f", after {', '.join(spec.links)}" if spec.links else ""
        ready = f"; ready when {spec.ready.url} answers" if spec.ready else ""
        lines += ["", f"# {spec.name}{after}{ready}; log: {run.paths.log(spec.name)}"]
        lines.append(_command(spec.argv))
    lines += [
        "",
        f"# apply {', '.join(objects.path(item) for item in objects.build(run.config.cluster.service_cidr))}",
        f"# wait until node {run.config.cluster.node_name} is Ready, then write {run.paths.kubeconfig}",
        f"export KUBECONFIG={shlex.quote(run.paths.kubeconfig)}",
    ]
    return "\n".join(lines) + "\n"


def write_kubeconfig(run: component.Run, name: str, path: str) -> None:
    """Write the kubeconfig of component ``name`` (or the user's own: admin) to ``path``."""
    leaf = KUBECONFIGS[name]
    user = "admin" if name == "admin" else name
    text = kubeconfig.build(
        cluster=run.config.cluster.name,
        user=user,
        server=run.api_server,
        ca=run.pki("ca.crt"),
        cert=run.pki(f"{leaf}.crt"),
        key=run.pki(f"{leaf}.key"),
    )
    kubeconfig.write(path, text)


def write_files(run: component.Run) -> None:
    """Write all that the components read: certificates, kubeconfigs, configuration."""
    pki.PKI(run.paths.pki).ensure(certificates(run))
    for name in KUBECONFIGS:
        write_kubeconfig(run, name, run.paths.component_kubeconfig(name))
    files.write_atomic(coredns.corefile_path(run), coredns.corefile(run))
    files.write_json(run.paths.ports, dict(run.ports))
    files.private_dir(run.etcd_dir)
    os.chmod(run.etcd_dir, 0o700)


class ControlPlane:
    """One run of the control plane."""

    def __init__(self, run: component.Run, report: statedir.Report) -> None:
        self._run = run
        self._report = report
        self._specs = components.build(run)
        self._summaries = {spec.name: spec.summary for spec in self._specs}
        self._runner = runner.Runner(
            self._specs,
            environment=component.environment(run, os.environ),
            folder=run.paths.root,
            log_path=run.paths.log,
            changed=self._changed,
        )

    def _changed(self) -> None:
        self._report.components(self._runner.states, self._summaries)

    async def bring_up(self) -> None:
        """Start everything and return when the node is Ready. Raises StateError when that does not come about."""
        began = time.time()
        self._runner.start()
        await self._runner.wait_ready("kube-apiserver")
        async with kube_client.Client.from_kubeconfig(self._run.paths.component_kubeconfig("admin"), user_agent="hpk-bootstrap") as client:
            await objects.release_lease(client, began)
            await objects.apply(client, self._run.config.cluster.service_cidr)
        await asyncio.gather(*(self._runner.wait_ready(name) for name in self._runner.states))

    async def renew_certificates(self) -> None:
        """Eternal: renew what would expire, in a control plane that runs for months."""
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_SECONDS)
            made = pki.PKI(self._run.paths.pki).ensure(certificates(self._run))
            if made:
                log.info("renewed certificates: %s", ", ".join(made))
                write_files(self._run)
                write_kubeconfig(self._run, "admin", self._run.paths.kubeconfig)
                await self._runner.restart(made)

    async def stop(self) -> None:
        await self._runner.stop()


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    statedir.check_version(where)
    config = configuration.load(where)
    this = facts(where, config)
    if args.dry_run:
        sys.stdout.write(transcript(this))
        return 0
    statedir.prepare(where)
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    owner = lock.Owner.here(this.host, os.environ.get("SLURM_CLUSTER_NAME", ""), this.job_id, int(restart) if restart.isdigit() else 0)
    slurm = commands.Slurm(config)
    successor = handover.Handover(where, slurm, this.job_id)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, successor.wanted.set)
    mine = lock.Lock(where.lock, owner, job_alive=functools.partial(jobs.alive, slurm))
    if predecessor := os.environ.get(handover.PREDECESSOR, ""):
        await mine.acquire(after=predecessor)
        this = facts(where, config)  # it may have been on this node: its ports are free now
    else:
        await mine.acquire()
    try:
        await _serve(this, mine, successor)
    finally:
        mine.release()
    return 0


async def _serve(this: component.Run, mine: lock.Lock, successor: handover.Handover) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(signum, stopping.set)
    report = statedir.Report(
        this.paths.cluster_run,
        {
            "jobID": this.job_id,
            "host": this.host,
            "address": this.address,
            "pid": os.getpid(),
            "apiServer": this.api_server,
            "dns": {"address": "127.0.0.1", "port": this.ports["dns"], "transport": "tls"},
        },
    )
    logfiles.prune(this.paths.logs, jobs.OUTPUT.replace("%j", "*"))
    watchers: list[asyncio.Task[object]] = []
    plane: ControlPlane | None = None
    try:
        write_files(this)
        report.step("certificates")
        plane = ControlPlane(this, report)
        keep = asyncio.create_task(mine.keep(), name="keep the lock")
        stop = asyncio.create_task(stopping.wait(), name="wait for the end")
        up = asyncio.create_task(plane.bring_up(), name="bring up")
        watchers += [keep, stop, up]
        await asyncio.wait({keep, stop, up}, return_when=asyncio.FIRST_COMPLETED)
        if not keep.done() and not stop.done():
            up.result()
            write_kubeconfig(this, "admin", this.paths.kubeconfig)
            report.step("node Ready")
            report.phase("ready")
            print(f"export KUBECONFIG={shlex.quote(this.paths.kubeconfig)}", flush=True)
            renew = tasks.guarded(plane.renew_certificates(), "renew certificates")
            follow = asyncio.create_task(successor.run(), name="hand over")
            watchers += [renew, follow]
            await asyncio.wait({keep, stop, renew, follow}, return_when=asyncio.FIRST_COMPLETED)
            if renew.done():
                renew.result()
            if follow.done():
                log.info("%s", follow.result())
        if keep.done():
            raise errors.StateError(f"stopping: {keep.result()}")
    except errors.HPKError as exc:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            report.phase("failed", error=exc.message)
        raise
    else:
        report.phase("stopping")
        log.info("stopping")
    finally:
        await tasks.stop(watchers)
        if plane is not None:
            await plane.stop()
    report.phase("stopped")
