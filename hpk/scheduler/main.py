"""``hpk scheduler``: one instance at a time binds Pods; others wait for its Lease.

The Lease is kube-scheduler's own, ``kube-system/kube-scheduler``: the role system:kube-scheduler allows exactly that one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket

from hpk import __version__, paths, tasks
from hpk.kube import client, events, lease
from hpk.scheduler import bind

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", help="credentials to use (default: those that the control plane wrote for the scheduler)")


async def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    where = args.kubeconfig or paths.Paths.default().component_kubeconfig("scheduler")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with client.Client.from_kubeconfig(where, user_agent=f"hpk-scheduler/{__version__}") as api:
        recorder = events.Recorder(api, bind.SCHEDULER_NAME, socket.gethostname())
        scheduler = bind.Scheduler(api, recorder)
        leader = lease.LeaderLease(api, "kube-system", "kube-scheduler")
        gc.collect()
        gc.freeze()  # what was imported stays: no need to look through it at each collection
        log.info("scheduler %s, pid %d, server %s", __version__, os.getpid(), api.server)
        running = [
            tasks.guarded(scheduler.watch(), "watch"),
            tasks.guarded(_lead(leader, scheduler), "leader"),
        ]
        waiter = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([*running, waiter], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            await tasks.stop(running)
            await recorder.stop(timeout=2.0)
        for task in running:
            if not task.cancelled() and (failure := task.exception()):
                raise failure
    log.info("scheduler ends")
    return 0


async def _lead(leader: lease.LeaderLease, scheduler: bind.Scheduler) -> None:
    """Lead, and stand for election again when the API server was away too long to renew."""
    while True:
        try:
            await leader.run(scheduler.bind)
        except lease.LostLease as exc:
            log.warning("%s; waiting to lead again", exc.message)
