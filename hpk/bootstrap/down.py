"""``hpk down``: end the control plane in order. Pods run on without it; the next ``hpk up`` finds them."""

from __future__ import annotations

import argparse
import os
import signal
import time

from hpk import errors, paths
from hpk.bootstrap import jobs, lock, node

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


def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    holder, _ = lock.read(where.lock)
    try:
        job = jobs.control_plane(holder.job_id if holder else "")
    except errors.MissingTool:
        if holder is None or holder.job_id:
            raise
        job = None  # run by hand on a machine without Slurm
    if job is not None:
        end_job(job)
        print(f"control plane ended (job {job.job_id})")
    elif holder is not None and not holder.job_id:
        end_process(holder, where)
        print(f"control plane ended (process {holder.pid})")
    else:
        print("no control plane runs")
    if args.pods:
        pods = jobs.pods()
        if pods:
            jobs.cancel([pod.job_id for pod in pods])
        print(f"jobs of Pods ended: {len(pods)}")
    return 0


def end_job(job: jobs.Job) -> None:
    """End the control plane's job and wait until it is gone. Raises SlurmError."""
    if job.state == "RUNNING":
        jobs.cancel([job.job_id], signal="TERM")
        if _gone(job.job_id, GRACE_SECONDS):
            return
    jobs.cancel([job.job_id])
    if not _gone(job.job_id, CANCEL_SECONDS):
        raise errors.SlurmError(f"job {job.job_id} does not end", hint=f"squeue --jobs={job.job_id} shows its state")


def _gone(job_id: str, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if jobs.alive(job_id) is False:
            return True
        time.sleep(0.3)
    return False


def end_process(holder: lock.Owner, where: paths.Paths) -> None:
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
        time.sleep(0.1)
