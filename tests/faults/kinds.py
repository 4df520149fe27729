"""The kinds of faults: each a function that really injects one, with Pods around it, and returns when the injection is over."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable

from hpk.kubelet import faults
from tests.e2e.cluster import wait_for
from tests.faults.ledger import Entry, Ledger
from tests.faults.victim import Victim


@dataclasses.dataclass
class Scene:
    """Where a fault happens."""

    victim: Victim
    ledger: Ledger
    dice: random.Random
    outage: float = 60.0
    """Longest time that slurmctld is away, in seconds."""
    number: int = 0
    _pid: int = 0

    def pod(self, seconds: float = 0.5, code: int | None = -1, **options: object) -> Entry:
        """A Pod of this fault; without ``code`` a random exit code."""
        code = self.dice.choice((0, 0, 1, 3, 7, 42, 255)) if code == -1 else code
        return self.ledger.create(self.number, seconds, code, **options)  # type: ignore[arg-type]

    def await_death(self, armed: str) -> None:
        """Wait until the kubelet has died at the point that was armed, and another one works."""
        wait_for(lambda: not self.victim.armed(), 120, lambda: f"nobody came to the point {armed}\n{self.victim.explain()}", pace=0.1)
        self.back("kubelet", self._pid)

    def back(self, component: str, killed: int) -> None:
        self.victim.await_component(component, killed)

    def arm(self, point: str) -> None:
        self._pid = wait_for(lambda: self.victim.component("kubelet")[0], 60)
        self.victim.arm(point)


@dataclasses.dataclass(frozen=True)
class Kind:
    name: str
    weight: int
    inject: Callable[[Scene], None]


KINDS: dict[str, Kind] = {}


def kind(name: str, weight: int = 10) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register a kind. Of ``weight``s that are equal, equally many are injected."""

    def register(inject: Callable[[Scene], None]) -> Callable[[Scene], None]:
        KINDS[name] = Kind(name, weight, inject)
        return inject

    return register


# -- kill -9 of the kubelet ----------------------------------------------------------------------------------------------


def _killed_at(point: str) -> None:
    @kind(f"kubelet killed {point.replace('-', ' ')}")
    def inject(scene: Scene) -> None:
        scene.arm(point)
        if point in ("before-delete", "before-remove"):
            pod = scene.pod(300)  # the API server itself removes a Pod that has ended
            scene.ledger.await_phase(pod, "Running")
            pod.deleted = True
            scene.ledger.delete(pod)
        else:
            scene.pod()
            scene.pod()
        scene.await_death(point)


for _point in faults.POINTS:
    _killed_at(_point)


@kind("kubelet killed at a random moment")
def kubelet_killed(scene: Scene) -> None:
    for _ in range(3):
        scene.pod()
    time.sleep(scene.dice.uniform(0, 2.5))
    scene.back("kubelet", scene.victim.signal("kubelet"))


@kind("kubelet frozen, then killed, Pods end meanwhile")
def kubelet_frozen(scene: Scene) -> None:
    pod = scene.pod(3)
    scene.ledger.await_phase(pod, "Running")
    scene.victim.signal("kubelet", "STOP")
    time.sleep(6)
    scene.back("kubelet", scene.victim.signal("kubelet"))


@kind("Pod deleted, kubelet killed at a random moment")
def deletion(scene: Scene) -> None:
    pod = scene.pod(300)
    if scene.dice.random() < 0.7:
        scene.ledger.await_phase(pod, "Running")
    else:
        time.sleep(scene.dice.uniform(0, 1))
    pod.deleted = True
    scene.ledger.delete(pod)
    time.sleep(scene.dice.uniform(0, 1.5))
    scene.back("kubelet", scene.victim.signal("kubelet"))


# -- Slurm's commands ----------------------------------------------------------------------------------------------------


def _sbatch(fault: str, title: str) -> None:
    @kind(f"sbatch {title}")
    def inject(scene: Scene) -> None:
        scene.victim.command_fault("sbatch", fault)
        scene.pod()
        scene.pod()
        wait_for(lambda: not scene.victim.command_faulty("sbatch"), 60, scene.victim.explain, pace=0.1)
        if scene.dice.random() < 0.3:  # in the middle of the doubt
            time.sleep(scene.dice.uniform(0, 3))
            scene.back("kubelet", scene.victim.signal("kubelet"))


_sbatch("lost-reply", "loses its answer, the job exists")
_sbatch("late", "loses its answer, the job comes 3 s later")
_sbatch("hang", "times out, the job exists")
_sbatch("killed", "is killed, the job exists")
_sbatch("garbled", "prints garbage, the job exists")
_sbatch("unreachable", "does not reach slurmctld")
_sbatch("refused", "is refused for a limit")


def _squeue(fault: str, title: str) -> None:
    @kind(f"squeue {title}")
    def inject(scene: Scene) -> None:
        seen = scene.victim.faults_seen()
        ends = scene.pod(2)
        if scene.dice.random() < 0.5:
            scene.ledger.await_phase(ends, "Running", "Succeeded", "Failed")
        scene.victim.command_fault("squeue", fault)
        scene.pod()
        killed = scene.victim.signal("kubelet") if scene.dice.random() < 0.5 else 0
        wait_for(lambda: scene.victim.faults_seen() >= seen + 2, 60, scene.victim.explain, pace=0.1)
        time.sleep(scene.dice.uniform(0, 3))
        scene.victim.command_well("squeue")
        if killed:
            scene.back("kubelet", killed)


_squeue("garbage", "prints garbage")
_squeue("truncated", "stops in the middle of a line")
_squeue("fail", "fails")


@kind("scancel fails")
def scancel_fails(scene: Scene) -> None:
    seen = scene.victim.faults_seen()
    pod = scene.pod(300, annotations={"slurm-job.hpk.io/flags": "--begin=now+1hour"})
    wait_for(lambda: scene.victim.jobs().get(pod.uid), 60, scene.victim.explain)
    scene.victim.command_fault("scancel", "fail")
    pod.deleted = True
    scene.ledger.delete(pod)
    wait_for(lambda: scene.victim.faults_seen() > seen, 60, scene.victim.explain, pace=0.1)
    scene.victim.command_well("scancel")


# -- slurmctld -----------------------------------------------------------------------------------------------------------


def _slurmctld(scene: Scene, stop: Callable[[], object], go: Callable[[], object]) -> None:
    seconds = scene.dice.uniform(5, scene.outage)
    scene.pod(scene.dice.uniform(1, 8))
    time.sleep(scene.dice.uniform(0, 2))
    stop()
    begin = time.monotonic()
    try:
        scene.pod()
        if scene.dice.random() < 0.5:
            time.sleep(scene.dice.uniform(0, 4))
            scene.back("kubelet", scene.victim.signal("kubelet"))
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
    finally:
        go()
    wait_for(lambda: scene.victim.run("squeue", check=False, timeout=60).returncode == 0, 60)


@kind("slurmctld frozen for 5-60 s", weight=4)
def slurmctld_frozen(scene: Scene) -> None:
    bed = scene.victim.bed
    _slurmctld(scene, lambda: bed.root("pkill", "-STOP", "-x", "slurmctld"), lambda: bed.root("pkill", "-CONT", "-x", "slurmctld"))


@kind("slurmctld stopped, back after 5-60 s", weight=4)
def slurmctld_stopped(scene: Scene) -> None:
    """Not by SIGKILL: it would forget, and on its return kill, the jobs of its last seconds, and none of us could know their ends."""
    bed = scene.victim.bed

    def stop() -> None:
        bed.root("pkill", "-TERM", "-x", "slurmctld")
        wait_for(lambda: bed.root("pgrep", "-x", "slurmctld", check=False).returncode != 0, 30, pace=0.1)

    _slurmctld(scene, stop, lambda: bed.root("slurmctld"))


# -- files ---------------------------------------------------------------------------------------------------------------


def _status_file(scene: Scene, pod: Entry) -> str:
    return f"{scene.victim.state}/pods/default_{pod.name}_{pod.uid}/status.json"


@kind("status file of a running Pod removed")
def status_removed(scene: Scene) -> None:
    pod = scene.pod(scene.dice.uniform(4, 7))
    scene.ledger.await_phase(pod, "Running")
    scene.victim.signal("kubelet", "STOP")
    scene.victim.bed.root("rm", _status_file(scene, pod))
    scene.back("kubelet", scene.victim.signal("kubelet"))


@kind("status file of an ended Pod removed, unseen")
def last_status_removed(scene: Scene) -> None:
    pod = scene.pod(2)
    scene.ledger.await_phase(pod, "Running")
    killed = scene.victim.signal("kubelet", "STOP")
    job = scene.victim.jobs()[pod.uid][0]
    state = ["squeue", "--me", "-h", "-t", "all", "-j", job, "-o", "%T"]
    wait_for(lambda: scene.victim.run(*state).stdout.strip() in ("COMPLETED", "FAILED"), 60, scene.victim.explain)
    scene.victim.bed.root("rm", _status_file(scene, pod))
    scene.victim.signal("kubelet")
    scene.back("kubelet", killed)


@kind("disk of the Pods' folders full for some seconds")
def disk_full(scene: Scene) -> None:
    ends = scene.pod(scene.dice.uniform(0.5, 3))
    if scene.dice.random() < 0.6:
        scene.ledger.await_phase(ends, "Running", "Succeeded", "Failed")
    scene.victim.fill_disk()
    try:
        scene.pod()
        time.sleep(scene.dice.uniform(1, 4))
        killed = scene.victim.signal("kubelet") if scene.dice.random() < 0.5 else 0
        time.sleep(scene.dice.uniform(1, 4))
    finally:
        scene.victim.empty_disk()
    if killed:
        scene.back("kubelet", killed)


# -- jobs and network ----------------------------------------------------------------------------------------------------


def _where(scene: Scene, pod: Entry) -> str:
    """Host of a running Pod's job."""
    job = scene.victim.jobs()[pod.uid][0]
    return str(scene.victim.run("squeue", "-h", "-j", job, "-o", "%B").stdout.strip())


@kind("supervisor killed")
def supervisor_killed(scene: Scene) -> None:
    pod = scene.pod(300, None)
    scene.ledger.await_phase(pod, "Running")
    scene.victim.bed.root("pkill", "-KILL", "-f", f"^[^ ]*python[^ ]* .*/hpk/pod.*{pod.uid}", host=_where(scene, pod))


@kind("channel cut for some seconds")
def channel_cut(scene: Scene) -> None:
    pod = scene.pod(scene.dice.uniform(1, 4))
    scene.ledger.await_phase(pod, "Running", "Succeeded", "Failed")
    bed, target = scene.victim.bed, scene.victim.report()["address"]
    others = [host for host in bed.nodes if host != scene.victim.host]
    for host in others:
        bed.root("ip", "route", "add", "blackhole", f"{target}/32", host=host)
    try:
        scene.pod()
        time.sleep(scene.dice.uniform(3, 10))
    finally:
        for host in others:
            bed.root("ip", "route", "del", "blackhole", f"{target}/32", host=host)


# -- the control plane ---------------------------------------------------------------------------------------------------


def _component(name: str, weight: int) -> None:
    @kind(f"{name} killed", weight)
    def inject(scene: Scene) -> None:
        scene.pod(scene.dice.uniform(0, 3))
        scene.pod()
        time.sleep(scene.dice.uniform(0, 2))
        scene.back(name, scene.victim.signal(name))


_component("kube-apiserver", 6)
_component("etcd", 4)
_component("scheduler", 4)
