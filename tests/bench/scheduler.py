"""Bindings per second and resident memory of the scheduler against a real API server.

    python -m tests.bench.scheduler [--pods 2000]

The Pods exist and wait before the scheduler starts, so only the scheduler and the API server are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from hpk.kube import client as kube_client
from tests.component.conftest import APIServer, pod


def _status(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: APIServer, pods: int) -> None:
    async with kube_client.Client.from_kubeconfig(server.admin, user_agent="bench") as client:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}}
        await client.create(kube_client.path("v1", "serviceaccounts", "default"), account)
        for first in range(0, pods, 50):
            names = [f"p{number}" for number in range(first, min(first + 50, pods))]
            await asyncio.gather(*(client.create(kube_client.pods_path("default"), pod("default", name)) for name in names))
        with open(os.path.join(server.folder, "scheduler.log"), "wb") as log:
            argv = [sys.executable, "-m", "hpk", "scheduler", "--kubeconfig", server.kubeconfig("system:kube-scheduler")]
            scheduler = subprocess.Popen(argv, stdout=log, stderr=log)  # noqa: ASYNC220 - one quick fork
        await asyncio.sleep(5)  # it has listed the Pods, told that there are no nodes, and is quiet
        idle = _status(scheduler.pid, "VmRSS")
        cpu = _cpu(scheduler.pid)
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hpk"}}
        await client.create(kube_client.path("v1", "nodes"), body)
        await client.patch(kube_client.path("v1", "nodes", name="hpk"), {"spec": {"taints": []}})
        started = time.monotonic()
        left = pods
        while left:
            await asyncio.sleep(0.25)
            page = await client.get(kube_client.pods_path("default"), fieldSelector="spec.nodeName=", limit=1)
            left = len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)
        seconds = time.monotonic() - started
        cpu = _cpu(scheduler.pid) - cpu
        await asyncio.sleep(2)
        result = {
            "pods": pods,
            "seconds": round(seconds, 2),
            "bindsPerSecond": round(pods / seconds),
            "cpuMillisecondsPerBind": round(cpu / pods * 1000, 2),
            "rssWaitingMB": round(idle / 1024, 1),
            "rssAfterMB": round(_status(scheduler.pid, "VmRSS") / 1024, 1),
            "rssPeakMB": round(_status(scheduler.pid, "VmHWM") / 1024, 1),
        }
        print(json.dumps(result))
        scheduler.terminate()
        scheduler.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=2000)
    args = parser.parse_args()
    server = APIServer(tempfile.mkdtemp(prefix="hpk-bench-"))
    try:
        server.start_etcd()
        server.start_apiserver()
        asyncio.run(measure(server, args.pods))
    finally:
        server.end()
        shutil.rmtree(server.folder)


if __name__ == "__main__":
    main()
