"""``hpk status``: what runs and where, also when nothing does."""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
from typing import Any

from hpk import config as configuration
from hpk import errors, paths
from hpk.bootstrap import jobs, lock, statedir, up
from hpk.kube import client as kube_client
from hpk.slurm import commands, states

#: Seconds that the API server may take to answer.
API_TIMEOUT = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show what runs and where. Exit code 0 when the cluster is ready, 3 when it is not."


def control_plane_line(
    report: dict[str, Any], holder: lock.Owner | None, age: float | None, job: commands.Job | None, *, asked: bool
) -> tuple[str, bool]:
    """Return the line about the control plane, and whether it runs, from run/cluster.json, the lock and Slurm (pure).

    ``asked``: Slurm has answered, so that no ``job`` means that there is none.
    """
    if job is not None and job.state is states.JobState.PENDING and holder is not None and holder.job_id == job.job_id:
        return f"job {job.job_id} is queued again ({job.reason}); it ran on {holder.host}", False
    if holder is None:
        if job is not None:
            return f"job {job.job_id} is {job.state.value}" + (f" ({job.reason})" if job.state is states.JobState.PENDING else ""), False
        last = ""
        if report:
            who = f"job {report['jobID']}" if report.get("jobID") else f"process {report.get('pid')}"
            last = (
                f" (last: {who} on {report.get('host')}, {report.get('phase')}"
                + (f": {report['error']}" if report.get("error") else "")
                + ")"
            )
        return f"not running{last}", False
    if asked and job is None and holder.job_id:
        of = f" of cluster {holder.cluster}" if holder.cluster else ""
        return f"not running (job {holder.job_id}{of} on {holder.host} is over, without having said so)", False
    if age is not None and age > lock.LEASE_SECONDS:
        return f"{holder.describe()} has been silent for {age:.0f} s", False
    return f"{report.get('phase', 'starting')}, {holder.describe()} since {report.get('startedAt', '?')}", True


def component_lines(components: dict[str, Any]) -> list[str]:
    """Return one line for each component (pure)."""
    lines = []
    for value in components.values():
        restarts = f", {value['restarts']} restarts" if value["restarts"] else ""
        last = f" (last: {value['lastExit']})" if value["lastExit"] else ""
        lines.append(f"  {value['summary']:<20} {value['phase']}{restarts}{last}")
    return lines


def pod_counts(pods: list[dict[str, Any]]) -> str:
    """Return "3 Running, 1 Pending" (pure)."""
    counts = collections.Counter(str(pod.get("status", {}).get("phase", "Unknown")) for pod in pods)
    return ", ".join(f"{count} {phase}" for phase, count in counts.most_common()) or "none"


async def _ask_api(where: paths.Paths) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    async with kube_client.Client.from_kubeconfig(where.kubeconfig, user_agent="hpk-status") as client:
        nodes = await client.list("/api/v1/nodes")
        pods = await client.list("/api/v1/pods")
    return nodes["items"], pods["items"]


def _ready(node: dict[str, Any]) -> str:
    condition = next((c for c in node.get("status", {}).get("conditions", []) if c["type"] == "Ready"), None)
    if condition is None:
        return "unknown"
    return "Ready" if condition["status"] == "True" else f"not Ready ({condition.get('reason', '')}: {condition.get('message', '')})"


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    if not statedir.check_version(where):
        print(f"{'state':<22} none yet ({where.root})")
        return 3
    report = up.read_report(where)
    holder, age = lock.read(where.lock)
    try:
        job = await jobs.control_plane(commands.Slurm(configuration.load(where)), where, up.known_jobs(where))
    except (errors.SlurmError, errors.MissingTool) as exc:
        print(f"{'Slurm':<22} {exc.message}")
        job, asked = None, False
    else:
        asked = True
    line, runs = control_plane_line(report, holder, age, job, asked=asked)
    print(f"{'state':<22} {where.root}")
    print(f"{'control plane':<22} {line}")
    if not runs:
        return 3
    print(f"{'API server':<22} {report.get('apiServer', '')}")
    for text in component_lines(report.get("components", {})):
        print(text)
    if not os.path.exists(where.kubeconfig):
        return 3
    try:
        nodes, pods = await asyncio.wait_for(_ask_api(where), API_TIMEOUT)
    except asyncio.TimeoutError:
        print(f"{'API':<22} no answer in {API_TIMEOUT:.0f} s")
        return 3
    except errors.APIError as exc:
        print(f"{'API':<22} {exc.message}")
        return 3
    for node in nodes:
        print(f"{'node ' + node['metadata']['name']:<22} {_ready(node)}")
    print(f"{'pods':<22} {pod_counts(pods)}")
    return 0 if report.get("ready") else 3
