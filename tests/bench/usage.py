"""Memory, CPU time and wake-ups of processes on the test bed's hosts, read from /proc as root."""

from __future__ import annotations

import re

from tests.e2e.cluster import Cluster

#: One line per process of a user: pid, RSS, PSS and anonymous memory in KiB, clock ticks of user and system time, voluntary
#: switches, command line.
_SCRIPT = r"""
for node in /proc/[0-9]*; do
  [ "$(stat -c %U "$node" 2>/dev/null)" = "$1" ] || continue
  set -- "$1" $(awk '/^Rss:/{r=$2} /^Pss:/{p=$2} /^Anonymous:/{a=$2} END{print r+0, p+0, a+0}' "$node/smaps_rollup" 2>/dev/null)
  ticks=$(sed 's/.*) //' "$node/stat" 2>/dev/null | awk '{print $12 + $13}')
  switches=$(cat "$node"/task/*/status 2>/dev/null | awk '/^voluntary_ctxt/{n+=$2} END{print n+0}')
  [ "${2:-0}" -gt 0 ] && echo "${node#/proc/}|$2|$3|$4|$ticks|$switches|$(tr '\0\n' '  ' < "$node/cmdline")"
  set -- "$1"
done
true
"""

#: What a command line is called in the tables, by the first pattern that is found in it.
_NAMES = (
    (r"-m hpk kubelet", "hpk kubelet"),
    (r"-m hpk scheduler", "hpk scheduler"),
    (r"hpk.*control-plane|-m hpk control-plane", "hpk control-plane"),
    (r"^Apptainer runtime parent|^Singularity runtime parent", "runtime's parent process"),
    (r"^\S*kube-apiserver ", "kube-apiserver"),
    (r"^\S*kube-controller-manager ", "kube-controller-manager"),
    (r"^\S*etcd ", "etcd"),
    (r"^\S*coredns ", "CoreDNS"),
    (r"squashfuse", "squashfuse"),
    (r"fuse-overlayfs", "fuse-overlayfs"),
    (r"hpk/pod", "supervisor"),
    (r"hpk-guard", "guard"),
    (r"slurmctld", "slurmctld"),
    (r"^(\S*/)?(ba)?sh ", "batch script"),
)


class Process:
    def __init__(self, line: str) -> None:
        pid, rss, pss, anonymous, ticks, switches, command = line.split("|", 6)
        self.pid, self.rss, self.pss, self.anonymous = int(pid), int(rss) / 1024, int(pss) / 1024, int(anonymous) / 1024
        self.cpu, self.switches = int(ticks or 0) / 100, int(switches)
        self.command = command.strip()
        self.name = next((name for pattern, name in _NAMES if re.search(pattern, self.command)), self.command[:60])


def processes(cluster: Cluster, host: str, user: str = "") -> list[Process]:
    """The user's processes on ``host``, largest first."""
    lines = cluster.bed.root("bash", "-c", _SCRIPT, "usage", user or cluster.user, host=host).stdout.splitlines()
    return sorted((Process(line) for line in lines if line.count("|") >= 6), key=lambda found: -found.rss)


def cpu(cluster: Cluster) -> dict[str, float]:
    """CPU seconds that each host has used, by its cgroup: what else the machine does is not in them."""
    found = {}
    for host in ("login", *cluster.bed.nodes):
        with open(f"/sys/fs/cgroup/cpuacct/{cluster.bed.layout.cgroup(host)}/cpuacct.usage") as file:
            found[host] = int(file.read()) / 1e9
    return found


def control_plane(cluster: Cluster) -> list[Process]:
    """Processes of the control-plane job, those of Pods on the same host left out, and slurmctld."""
    (job,) = [item for item in cluster.queue() if item["id"] == cluster.job]
    mine = [found for found in processes(cluster, job["host"]) if found.name not in ("supervisor", "guard", "squashfuse", "fuse-overlayfs")]
    return mine + [
        found for found in processes(cluster, "login", "slurm") + processes(cluster, "login", "root") if found.name == "slurmctld"
    ]
