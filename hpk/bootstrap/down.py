"""``hpk down``: end the control plane in order. Pods run on without it; the next ``hpk up`` finds them."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time

from hpk import config as configuration
from hpk import errors, paths
from hpk.bootstrap import jobs, lock, node, up
from hpk.slurm import commands, states

#: Seconds for an orderly stop, then for Slurm's own way of ending a job.
GRACE_SECONDS = 40.0
CANCEL_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "End the control plane. The cluster's state stays in the state directory, and the jobs of its Pods run on: "
        "`hpk up` continues with both. --pods ends these jobs too."
    )
    parser.add_argument(
        "--pods", action="store_true", help="end the jobs of all Pods as well; after the next `hpk up` they count as failed"
    )


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    slurm = commands.Slurm(configuration.load(where))
    holder, _ = lock.read(where.lock)
    try:
        found = await jobs.control_planes(slurm, where, up.known_jobs(where))
    except errors.MissingTool:
        if holder is None or holder.job_id:
            raise
        found = []  # run by hand on a machine without Slurm
    job = found[0] if found else None
    for other in found[1:]:  # in the queue: they must not take its place
        await slurm.cancel(other.job_id)
    if job is not None:
        await end_job(slurm, job)
        print(f"control plane ended (job {job.job_id})")
    elif holder is not None and not holder.job_id:
        await end_process(holder, where)
        print(f"control plane ended (process {holder.pid})")
    else:
        print("no control plane runs")
    if args.pods:
        pods = await jobs.pods(slurm, where)
        for pod in pods:
            await slurm.cancel(pod.job_id)
        print(f"jobs of Pods ended: {len(pods)}")
    return 0


async def end_job(slurm: commands.Slurm, job: commands.Job) -> None:
    """End the control plane's job and wait until it is gone. Raises SlurmError."""
    if job.state is states.JobState.RUNNING:
        await slurm.cancel(job.job_id, signal="TERM", batch=True)
        if await _gone(slurm, job.job_id, GRACE_SECONDS):
            return
    await slurm.cancel(job.job_id)
    if not await _gone(slurm, job.job_id, CANCEL_SECONDS):
        raise errors.SlurmError(f"job {job.job_id} does not end", hint=f"squeue --jobs={job.job_id} shows its state")


async def _gone(slurm: commands.Slurm, job_id: str, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if await jobs.alive(slurm, job_id) is False:
            return True
        await asyncio.sleep(0.3)
    return False


async def end_process(holder: lock.Owner, where: paths.Paths) -> None:
    """End a control plane that was started by hand. Raises StateError when it is not on this node."""
    if holder.host != node.host_name():
        raise errors.StateError(f"the control plane is process {holder.pid} on {holder.host}", hint="run `hpk down` there")
    if lock.process_start(holder.pid) != holder.started:
        os.unlink(where.lock)
        return
    os.kill(holder.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while lock.process_start(holder.pid) == holder.started:
        if time.monotonic() > deadline:
            raise errors.StateError(f"process {holder.pid} does not end")
        await asyncio.sleep(0.1)
