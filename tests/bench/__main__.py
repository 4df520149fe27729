"""Usage: python -m tests.bench [--rounds N]. Prints Markdown, the form of docs/performance.md."""

from __future__ import annotations

import argparse
import json
import os
import statistics

from tests.e2e.cluster import Cluster
from tests.testbed import Bed


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def memory(cluster: Cluster) -> list[tuple[str, float, float]]:
    """(process, RSS, PSS) in MB of every process of the control-plane job, largest first."""
    script = r"""
for node in /proc/[0-9]*; do
  [ "$(stat -c %u "$node" 2>/dev/null)" = "$(id -u)" ] && [ "${node#/proc/}" != $$ ] || continue
  rss=$(awk '/^Rss:/{print $2}' "$node/smaps_rollup" 2>/dev/null); pss=$(awk '/^Pss:/{print $2; exit}' "$node/smaps_rollup" 2>/dev/null)
  [ -n "$rss" ] && printf '%s|%s|%s\n' "$(tr '\0\n' '  ' < "$node/cmdline")" "$rss" "$pss"
done
"""
    (job,) = [item for item in cluster.queue() if item["id"] == cluster.job]
    found = []
    for line in cluster.bed.run("bash", "-c", script, host=job["host"], user=cluster.user).stdout.splitlines():
        command, rss, pss = line.rsplit("|", 2)
        found.append((command.strip()[:70], int(rss) / 1024, int(pss) / 1024))
    return sorted(found, key=lambda row: -row[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=20, help="Pods and bare jobs each")
    args = parser.parse_args()
    kept = "HPK_TESTBED" in os.environ
    bed = Bed(None if kept else "bench")
    if not kept:
        bed.down()
    bed.up()
    alice = Cluster(bed, "alice")
    try:
        boots = []
        for _ in range(3):  # the first one makes keys and an empty etcd
            boots.append(alice.start())
            if len(boots) < 3:
                alice.stop()
        print("sbatch to node Ready, s: first " + ", then ".join(f"{seconds:.1f}" for seconds in boots), flush=True)
        print("\n| process of the control-plane job, idle | RSS MB | PSS MB |\n| --- | ---: | ---: |")
        rows = memory(alice)
        for command, rss, pss in rows:
            print(f"| {command} | {rss:.0f} | {pss:.0f} |")
        print(f"| all | {sum(row[1] for row in rows):.0f} | {sum(row[2] for row in rows):.0f} |\n", flush=True)
        image = alice.run("bash", "-c", "ls -S ~/.hpk/images/*.sif 2>/dev/null | tail -1").stdout.strip()
        if not image:
            alice.kubectl("run", "warm", "--image=busybox", "--restart=Never", "--", "true")
            alice.wait_phase("warm", "Succeeded")
            image = alice.run("bash", "-c", "ls -S ~/.hpk/images/*.sif | tail -1").stdout.strip()
        script = f"{alice.home}/hpk/tests/bench/in_bed.py"
        python = alice.run("bash", "-c", "head -1 $(command -v hpk)").stdout.strip().removeprefix("#!")
        answer = alice.run(python, script, f"{alice.home}/.hpk/kubeconfig", image, str(args.rounds), timeout=60 + 20 * args.rounds)
        figures = json.loads(answer.stdout)
        print(f"| start to first process, s, {args.rounds} each in turn | p50 | p95 |\n| --- | ---: | ---: |")
        for name, title in (("pod", "Pod (POST to the API server)"), ("bare", "`sbatch` of `apptainer exec`")):
            print(f"| {title} | {statistics.median(figures[name]):.2f} | {quantile(figures[name], 0.95):.2f} |")
        difference = statistics.median(figures["pod"]) - statistics.median(figures["bare"])
        ratio = statistics.median(figures["pod"]) / statistics.median(figures["bare"])
        print(f"| Pod - bare (ratio {ratio:.2f}) | {difference:.2f} | |")
    finally:
        alice.stop()
        if not kept:
            bed.down(wipe=True)


if __name__ == "__main__":
    main()
