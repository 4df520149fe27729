"""Usage: python -m tests.bench [PART...] [--rounds N]. Prints Markdown, the form of docs/performance.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time

from tests.bench import usage
from tests.e2e.cluster import Cluster, pod
from tests.testbed import Bed

PARTS = ("boot", "start", "burst", "memory", "path")


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def in_bed(cluster: Cluster, *argv: str, timeout: float) -> dict:
    script = f"{cluster.home}/hpk/tests/bench/in_bed.py"
    python = cluster.run("bash", "-c", "head -1 $(command -v hpk)").stdout.strip().removeprefix("#!")
    answer = cluster.run(python, script, f"{cluster.home}/.hpk/kubeconfig", *argv, timeout=timeout, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return json.loads(answer.stdout)


def image(cluster: Cluster) -> str:
    """The SIF of busybox, pulled if need be."""
    find = "ls -S ~/.hpk/images/*.sif 2>/dev/null | grep -v control-plane | tail -1"
    if not cluster.run("bash", "-c", find).stdout.strip():
        cluster.apply(pod("warm", "true"))
        cluster.wait_phase("warm", "Succeeded")
        cluster.delete("pod", "warm")
    return cluster.run("bash", "-c", find).stdout.strip()


def boot(cluster: Cluster) -> None:
    boots = [cluster.start()]
    for _ in range(3):
        cluster.stop()
        boots.append(cluster.start())
    later = ", ".join(f"{seconds:.1f}" for seconds in boots[1:])
    print(f"\n(c) `sbatch` to node Ready: the first time (keys, empty etcd) {boots[0]:.1f} s, then {later} s")


def start(cluster: Cluster, rounds: int) -> None:
    figures = in_bed(cluster, "starts", image(cluster), str(rounds), timeout=60 + 30 * rounds)
    print(f"\n| (a) start to first process, s, {rounds} each in turn | p50 | p95 |\n| --- | ---: | ---: |")
    totals = {}
    for way, title in (("pod", "Pod (POST to the API server)"), ("bare", "`sbatch` of `apptainer exec`")):
        values = [steps["process"] for steps in figures[way]]
        totals[way] = statistics.median(values)
        print(f"| {title} | {totals[way]:.2f} | {quantile(values, 0.95):.2f} |")
    print(f"| Pod - bare (ratio {totals['pod'] / totals['bare']:.2f}) | {totals['pod'] - totals['bare']:.2f} | |")
    titles = {
        "posted": "API server has it",
        "bound": "scheduler has bound it",
        "prepared": "kubelet has prepared it (plan and script written)",
        "submitted": "sbatch has returned",
        "job": "Slurm has begun the job (output file made)",
        "supervisor": "supervisor begins the container (log file made)",
        "process": "first process in the container",
    }
    print("\n| step, ms after the one before, p50 | Pod | bare |\n| --- | ---: | ---: |")
    last: dict[str, str] = {}
    for step, title in titles.items():
        cells = []
        for way in ("pod", "bare"):
            rows = figures[way]
            if step not in rows[0]:
                cells.append("")
                continue
            cells.append(f"{statistics.median(row[step] - (row[last[way]] if way in last else 0) for row in rows) * 1000:.0f}")
            last[way] = step
        print(f"| {title} | {cells[0]} | {cells[1]} |")


def burst(cluster: Cluster, count: int) -> None:
    sif = image(cluster)
    print(f"\n| (b) {count} short ones | made, s | all done, s | a second | CPU ms each |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    rows = []
    for title, argv in (("Pods", ("burst", str(count))), ("loop of `sbatch`", ("loop", sif, str(count)))):
        time.sleep(5)
        before = sum(usage.cpu(cluster).values())
        found = in_bed(cluster, *argv, timeout=120 + 4 * count)
        time.sleep(5)
        cpu = (sum(usage.cpu(cluster).values()) - before) * 1000 / count
        rows.append((found["done"], cpu))
        failed = f" ({found['failed']} failed)" if found.get("failed") else ""
        print(f"| {title}{failed} | {found['made']:.1f} | {found['done']:.1f} | {count / found['done']:.2f} | {cpu:.0f} |", flush=True)
    print(f"| ratio | | {rows[0][0] / rows[1][0]:.2f} | | {rows[0][1] / rows[1][1]:.2f} |")


def memory(cluster: Cluster) -> None:
    time.sleep(20)  # idle
    rows = [row for row in usage.control_plane(cluster) if row.name != "slurmctld"]
    print("\n| (d) control-plane job, idle | RSS MB | PSS MB | anonymous MB |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row.name} | {row.rss:.0f} | {row.pss:.0f} | {row.anonymous:.0f} |")
    sums = [sum(getattr(row, kind) for row in rows) for kind in ("rss", "pss", "anonymous")]
    print(f"| all | {' | '.join(f'{total:.0f}' for total in sums)} |", flush=True)
    cluster.apply(pod("idle", "sleep", "1000"))
    cluster.wait_phase("idle", "Running")
    time.sleep(8)
    (job,) = [item for item in cluster.queue() if item["name"] == "default/idle"]
    names = ("supervisor", "guard", "squashfuse", "fuse-overlayfs", "runtime's parent process")
    uid = cluster.get("pod", "idle")["metadata"]["uid"]

    def of_pod() -> dict[str, usage.Process]:
        found = [row for row in usage.processes(cluster, job["host"]) if row.name in names]
        return {row.name: row for row in found if row.name != "runtime's parent process" or uid in row.command}

    before = of_pod()
    time.sleep(30)
    after = of_pod()
    print("\n| one Pod, idle | RSS MB | PSS MB | wake-ups in 30 s | CPU ms in 30 s |\n| --- | ---: | ---: | ---: | ---: |")
    for name, row in after.items():
        woken, cpu = row.switches - before[name].switches, (row.cpu - before[name].cpu) * 1000
        print(f"| {name} | {row.rss:.1f} | {row.pss:.1f} | {woken} | {cpu:.0f} |")
    cluster.delete("pod", "idle", "--grace-period=0", "--force")


def path(cluster: Cluster, counts: list[int]) -> None:
    names = ("hpk kubelet", "hpk scheduler", "kube-apiserver", "etcd", "slurmctld")
    image(cluster)
    print("\n(e) control path alone: Pods whose jobs Slurm holds. CPU in ms for each Pod; RSS in MB with all of them queued.\n", flush=True)
    columns = " | ".join(f"{name}: CPU, RSS" for name in names)
    print(f"| Pods | created/s | queued in Slurm/s | {columns} | everything: CPU | one squeue, s | deleted/s |")
    print(f"| ---: | ---: | ---: |{' ---: |' * len(names)} ---: | ---: | ---: |", flush=True)
    for count in counts:
        before, total = {row.name: row for row in usage.control_plane(cluster)}, sum(usage.cpu(cluster).values())
        made = in_bed(cluster, "create", str(count), timeout=200 + count)
        after = {row.name: row for row in usage.control_plane(cluster)}
        total = (sum(usage.cpu(cluster).values()) - total) * 1000 / count
        cells = [f"{(after[name].cpu - before[name].cpu) * 1000 / count:.1f}, {after[name].rss:.0f}" for name in names]
        idle = usage.control_plane(cluster)
        time.sleep(20)
        quiet = {row.name: row for row in usage.control_plane(cluster)}
        busy = {row.name: (quiet[row.name].cpu - row.cpu) / 20 * 100 for row in idle if row.name in names}
        gone = in_bed(cluster, "delete", str(count), timeout=200 + count)
        rates = f"{count / made['created']:.0f} | {count / made['seconds']:.1f}"
        print(
            f"| {count} | {rates} | {' | '.join(cells)} | {total:.0f} | {made['squeue']:.2f} | {count / gone['seconds']:.1f} |", flush=True
        )
        print(f"  while they wait, % of a CPU: {', '.join(f'{name} {value:.1f}' for name, value in busy.items())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("part", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=20, help="Pods and bare jobs each (start)")
    parser.add_argument("--count", type=int, default=200, help="short Pods and jobs (burst)")
    parser.add_argument("--path", default="100,1000,5000", help="numbers of Pods (path)")
    args = parser.parse_args()
    for part in args.part:
        if part not in PARTS:
            parser.error(f"PART: {part} is none of {', '.join(PARTS)}")
    wanted = args.part or list(PARTS)
    kept = "HPK_TESTBED" in os.environ
    bed = Bed(None if kept else "bench")
    if not kept:
        bed.down()
    bed.up()
    alice = Cluster(bed, "alice")
    load = os.getloadavg()[0]
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} CPUs, kernel {platform.release()}, load before {load:.1f}", flush=True)
    try:
        alice.stop()
        alice.run("rm", "-rf", f"{alice.home}/.hpk")  # a new cluster, also on a bed that was kept
        if "boot" in wanted:
            boot(alice)
        else:
            alice.start()
        if "memory" in wanted:  # first: nothing has run yet
            memory(alice)
        if "start" in wanted:
            start(alice, args.rounds)
        if "burst" in wanted:
            burst(alice, args.count)
        if "path" in wanted:
            path(alice, [int(count) for count in args.path.split(",")])
    finally:
        alice.stop()
        if not kept:
            bed.down(wipe=True)


if __name__ == "__main__":
    main()
