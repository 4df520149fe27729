"""``hpk kubelet``: wires the virtual kubelet's parts and runs them until SIGTERM. The Pods' jobs go on when it ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import glob
import logging
import os
import signal
import ssl
import sys
import time
import urllib.parse

from hpk import config as configuration
from hpk import errors, files, paths, procs, tasks
from hpk.kube import client as kube_client
from hpk.kube import events, store, watch
from hpk.kubelet import channel, images, node_controller, pleg, pod_controller, pod_workers, prepare, provider, status_manager
from hpk.kubelet.server import app
from hpk.slurm import commands

log = logging.getLogger(__name__)

#: Name in the kubelet's serving certificate by which supervisors know it (hpk/bootstrap/pki.py).
SERVER_NAME = "hpk-kubelet"
#: Pace of the sign of life from which the next kubelet sees which Events this one recorded.
ALIVE_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes nothing but --verbose."""


def _tls(where: paths.Paths) -> ssl.SSLContext:
    """Server side, with the kubelet's certificate. Raises InvalidInput."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate, key = os.path.join(where.pki, "kubelet.crt"), os.path.join(where.pki, "kubelet.key")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        raise errors.InvalidInput(
            f"certificate {certificate}: {exc}", hint="it is made by the control plane: run `hpk up`, which starts the kubelet too"
        ) from exc
    return context


def _address(where: paths.Paths, client: kube_client.Client) -> str:
    """Address of this node as compute nodes reach it: the control plane's."""
    with contextlib.suppress(ValueError, OSError):
        known = files.read_json(where.cluster_run) or {}
        if known.get("address"):
            return str(known["address"])
    return urllib.parse.urlsplit(client.server).hostname or "127.0.0.1"


def _last_alive(where: paths.Paths) -> float:
    """When the kubelet before us was alive last, in seconds since the epoch; 0: there was none."""
    try:
        return os.stat(where.kubelet_endpoint).st_mtime
    except OSError:
        return 0.0


def _last_port(where: paths.Paths) -> int:
    """The port of the kubelet before us: taken again, so that running supervisors need not read the endpoint file anew."""
    with contextlib.suppress(ValueError, OSError, TypeError):
        return int((files.read_json(where.kubelet_endpoint) or {}).get("port") or 0)
    return 0


async def _alive(where: paths.Paths, recorded: asyncio.Event) -> None:
    """Touch the endpoint file soon after Events were recorded: the next kubelet will not record them again."""
    while True:
        await recorded.wait()
        recorded.clear()  # before the pause: what comes during it is told by the next touch
        await asyncio.sleep(ALIVE_SECONDS)
        with contextlib.suppress(OSError):  # a comfort only
            os.utime(where.kubelet_endpoint)


class Tokens:
    """The secrets by which supervisors prove whose they are: files in the Pods' folders."""

    def __init__(self, where: paths.Paths) -> None:
        self._where = where
        self._workers: pod_workers.PodWorkers | None = None

    def use(self, workers: pod_workers.PodWorkers) -> None:
        self._workers = workers

    def __call__(self, uid: str) -> str | None:
        worker = self._workers.get(uid) if self._workers else None
        if worker is not None:
            return _secret(worker.dir.token)
        if not uid or "/" in uid:
            return None
        # not known yet (we have just started) or no more: its folder decides
        for folder in glob.glob(os.path.join(glob.escape(self._where.pods), f"*_{glob.escape(uid)}")):
            return _secret(paths.PodDir(folder).token)
        return None


def _secret(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() or None
    except (OSError, ValueError):
        return None


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    config = configuration.load(where)
    for tool in ("sbatch", "squeue", "scancel", "sinfo"):
        procs.find(tool, hint="the kubelet needs Slurm's commands: load Slurm's module, or `hpk slurm up` where there is no Slurm")
    procs.container_runtime()
    files.private_dir(where.pods)
    files.private_dir(where.run)
    tls = _tls(where)
    if sys.version_info < (3, 12):  # there it is the default; else a thread is started for every process
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.get_event_loop_policy().set_child_watcher(watcher)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with kube_client.Client.from_kubeconfig(where.component_kubeconfig("kubelet"), user_agent="hpk-kubelet") as client:
        recorder = events.Recorder(client, "kubelet", config.cluster.node_name)
        try:
            await _serve(where, config, client, recorder, tls, stopping)
        finally:
            await recorder.stop()
    return 0


async def _serve(
    where: paths.Paths,
    config: configuration.Config,
    client: kube_client.Client,
    recorder: events.Recorder,
    tls: ssl.SSLContext,
    stopping: asyncio.Event,
) -> None:
    slurm = commands.Slurm(config)
    statuses = status_manager.StatusManager(client)
    tokens = Tokens(where)
    # the parts know one another by what they tell one another
    channels = channel.ChannelServer(
        token=tokens,
        on_open=lambda uid, hello: workers.on_channel(uid),
        on_report=lambda uid, report: workers.on_report(uid, report),
        on_close=lambda uid: workers.on_channel(uid),
    )
    generator = pleg.Pleg(slurm, lambda uid, job: workers.on_job(uid, job), pace=config.slurm.poll_seconds)
    services = store.Store()
    image_manager = images.ImageManager(config=config, paths=where)
    preparer = prepare.Preparer(
        client=client,
        config=config,
        paths=where,
        recorder=recorder,
        images=image_manager,
        services=services,
    )
    kit = pod_workers.Kit(
        client=client,
        config=config,
        paths=where,
        recorder=recorder,
        slurm=slurm,
        provider=provider.SlurmProvider(config=config, slurm=slurm, generator=generator),
        pleg=generator,
        statuses=statuses,
        channels=channels,
        prepare=preparer.prepare,
        forget=preparer.forget,
        first_look=lambda: controller.first_look(),
        events_since=_last_alive(where) or time.time(),
    )
    workers = pod_workers.PodWorkers(kit)
    tokens.use(workers)
    controller = pod_controller.PodController(client=client, config=config, paths=where, slurm=slurm, generator=generator, workers=workers)
    address = _address(where, client)
    server = app.Server(config=config, paths=where, client=client, pods=controller.pods)
    api_port = await server.start(address)
    channel_port = await channels.start(tls, port=_last_port(where))
    files.write_json(where.kubelet_endpoint, {"address": address, "port": channel_port, "serverName": SERVER_NAME})
    node = node_controller.NodeController(
        client=client, config=config, paths=where, recorder=recorder, slurm=slurm, address=address, port=api_port
    )
    log.info("supervisors' channels on %s port %d", address, channel_port)
    running = [
        tasks.guarded(node.run(), "node"),
        tasks.guarded(statuses.run(), "statuses"),
        tasks.guarded(generator.run(), "pleg"),
        tasks.guarded(watch.Reflector(client, kube_client.path("v1", "services"), services).run(), "services"),
        tasks.guarded(controller.run(), "pods"),
        tasks.guarded(preparer.volumes.keep_fresh(controller.pods), "volumes"),
        tasks.guarded(image_manager.collect(), "image cache"),
        tasks.guarded(_alive(where, kit.recorded), "sign of life"),
    ]
    end = asyncio.create_task(stopping.wait(), name="wait for SIGTERM")
    try:
        done, _ = await asyncio.wait([*running, end], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {end}:
            task.result()  # raises what ended it
        log.info("ending; the Pods' jobs go on")
    finally:
        await tasks.stop([*running, end])
        await workers.stop()
        await channels.close()
        await server.stop()
