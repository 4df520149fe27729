"""Book of all Pods that a run of faults made: what each must come to, and what it came to."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import threading
import time
from typing import Any

from tests.faults import api
from tests.faults.victim import Victim

Object = dict[str, Any]

PODS = "/api/v1/namespaces/default/pods"
#: Seconds after which a Pod that has not come to its end counts as lost.
LOST_SECONDS = 240.0

_RANK = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}


@dataclasses.dataclass
class Entry:
    """One Pod. ``code``: exit code of its container; None where only the phase Failed is known beforehand."""

    name: str
    fault: int
    code: int | None
    uid: str = ""
    deleted: bool = False
    """It is deleted before its end, so no end is expected."""
    made: float = dataclasses.field(default_factory=time.monotonic)
    pod: Object = dataclasses.field(default_factory=dict)
    rank: int = 0
    lost: str = ""
    doubled: str = ""
    wrong: str = ""
    done: bool = False

    @property
    def verdicts(self) -> list[str]:
        return [text for text in (self.lost, self.doubled, self.wrong) if text]


def state(pod: Object) -> Object:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    return statuses[0].get("state") or {}


class Ledger:
    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.entries: dict[str, Entry] = {}
        self._watch_api = victim.api(10)
        self._end = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._watcher.start()

    def stop(self) -> None:
        self._end.set()
        self._watch_api.end_watch()
        self._watcher.join(90)

    def create(
        self,
        fault: int,
        seconds: float,
        code: int | None,
        *,
        script: str = "",
        annotations: dict[str, str] | None = None,
        grace: int = 2,
        name: str = "",
    ) -> Entry:
        """A Pod whose container notes that it ran, sleeps, and exits with ``code``."""
        name = name or f"f{fault}-{sum(1 for entry in self.entries.values() if entry.fault == fault)}"
        entry = Entry(name, fault, code)
        body = script or f"sleep {seconds}; exit {code or 0}"
        container = {
            "name": "main",
            "image": "busybox",
            "command": ["sh", "-c", f"echo $HOSTNAME >> /runs/{name}; {body}"],
            "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
        }
        spec = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [{"name": "runs", "hostPath": {"path": f"{self.victim.state}/runs"}}],
        }
        metadata = {"name": name, "annotations": annotations or {}}
        try:
            made = self.victim.client.call("POST", PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        except api.APIError as exc:
            if exc.code != 409:  # the answer to an earlier try was lost
                raise
            made = self.victim.client.call("GET", f"{PODS}/{name}")
        entry.uid = made["metadata"]["uid"]
        self.entries[entry.uid] = entry
        return entry

    def delete(self, entry: Entry) -> None:
        with contextlib.suppress(api.APIError):  # gone already
            self.victim.client.call("DELETE", f"{PODS}/{entry.name}")

    def phase(self, entry: Entry) -> str:
        try:
            entry.pod = self.victim.client.call("GET", f"{PODS}/{entry.name}")
        except api.APIError:
            return "gone"
        return str(entry.pod["status"].get("phase"))

    def await_phase(self, entry: Entry, *phases: str, timeout: float = 90.0) -> None:
        self.victim.wait(lambda: self.phase(entry) in phases, timeout)

    def runs(self, entry: Entry) -> int:
        try:
            with open(self.victim.outside("runs", entry.name), encoding="ascii") as file:
                return len(file.readlines())
        except FileNotFoundError:
            return 0

    # -- judging -------------------------------------------------------------------------------------------------------

    def open(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if not entry.done and not entry.name.startswith("resident")]

    def look(self) -> None:
        """Judge all Pods that have come to their end, and those that will not any more."""
        waiting = self.open()
        if not waiting:
            return
        present = {item["metadata"]["uid"]: item for item in self.victim.client.call("GET", PODS)["items"]}
        ended = []
        for entry in waiting:
            pod = present.get(entry.uid)
            if pod is None:
                if not entry.deleted and not entry.pod:
                    entry.lost = "the Pod is no longer in the API"
                ended.append(entry)
            elif pod["status"].get("phase") in ("Succeeded", "Failed") and not entry.deleted:
                entry.pod = pod
                ended.append(entry)
            elif time.monotonic() - entry.made > LOST_SECONDS:
                entry.pod, entry.lost = pod, f"no end after {LOST_SECONDS:.0f} s: {pod['status'].get('phase')} {state(pod)}"
                ended.append(entry)
        if not ended:
            return
        jobs = self.victim.jobs()
        for entry in ended:
            self._judge(entry, jobs.get(entry.uid, []))
            entry.done = True
            if entry.uid in present and not entry.lost:
                self.delete(entry)

    def _judge(self, entry: Entry, jobs: list[str]) -> None:
        self.count_jobs(entry, jobs)
        runs = self.runs(entry)
        if runs > 1:
            entry.doubled = f"its container ran {runs} times"
        if entry.deleted or entry.lost:
            return
        end = state(entry.pod).get("terminated") or {}
        phase = entry.pod["status"]["phase"]
        if entry.code is None:
            if phase != "Failed" or not end:
                entry.wrong = f"phase {phase}, {end} where Failed was expected"
        elif end.get("exitCode") != entry.code or phase != ("Failed" if entry.code else "Succeeded") or runs != 1:
            told = {key: entry.pod["status"].get(key) for key in ("phase", "reason", "message")}
            entry.wrong = f"exit code {entry.code} expected, told {told} {end}, ran {runs} times"

    def count_jobs(self, entry: Entry, jobs: list[str]) -> None:
        if len(set(jobs)) > 1:
            entry.doubled = f"Slurm jobs {', '.join(sorted(set(jobs)))}"

    def settle(self, timeout: float) -> None:
        """Wait until every Pod but the residents has been judged."""
        end = time.monotonic() + timeout
        self.look()
        while self.open() and time.monotonic() < end:
            time.sleep(0.4)
            self.look()

    # -- what never may happen in between ------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._end.is_set():
            with (
                contextlib.suppress(OSError, http.client.HTTPException, ValueError),
                contextlib.closing(self._watch_api.watch(PODS)) as changes,
            ):
                for _, pod in changes:
                    if self._end.is_set():
                        return
                    entry = self.entries.get((pod.get("metadata") or {}).get("uid", ""))
                    if entry is not None:
                        self._observe(entry, pod)
            self._end.wait(0.3)

    def _observe(self, entry: Entry, pod: Object) -> None:
        rank = _RANK.get(pod["status"].get("phase", "Pending"), 0)
        if rank < entry.rank:
            entry.wrong = f"phase went back to {pod['status'].get('phase')}"
        entry.rank = max(rank, entry.rank)
        statuses = pod["status"].get("containerStatuses") or [{}]
        if entry.rank == 1 and rank == 1 and "waiting" in (statuses[0].get("state") or {}) and statuses[0].get("restartCount") == 0:
            entry.wrong = f"a Pod that runs was shown as waiting: {statuses[0]['state']}"


class Residents:
    """Pods that run all the time: their processes must never notice anything."""

    COUNT = 2

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._entries: list[Entry] = []
        self._made = 0
        self._marks: dict[str, tuple[str, int]] = {}

    def start(self) -> None:
        """Start as many as there shall be, in the place of those that are no more too."""
        while len(self._entries) < self.COUNT:
            self._made += 1
            name = f"resident{self._made}"
            script = (
                f"id=$(cat /proc/sys/kernel/random/uuid); n=0; while :; do n=$((n+1)); "
                f'echo "$id $n" > /runs/.{name}; mv /runs/.{name} /runs/{name}.beat; sleep 1; done'
            )
            self._entries.append(self._ledger.create(-1, 0, 0, script=script, name=name))
        for entry in self._entries:
            self._ledger.await_phase(entry, "Running")
            self._ledger.victim.wait(lambda entry=entry: os.path.exists(self._beat(entry)), 30)
            self._marks[entry.name] = self._read(entry)

    def _beat(self, entry: Entry) -> str:
        return self._ledger.victim.outside("runs", f"{entry.name}.beat")

    def _read(self, entry: Entry) -> tuple[str, int]:
        with open(self._beat(entry), encoding="ascii") as file:
            mark, count = file.read().split()
        return mark, int(count)

    def problems(self) -> list[str]:
        """What became of them since the last look; nothing if all is well."""
        found = []
        for entry in list(self._entries):
            mark, count = self._read(entry)
            if (mark, count) == self._marks[entry.name]:
                time.sleep(2.0)
                mark, count = self._read(entry)
            if mark != self._marks[entry.name][0]:
                found.append(f"{entry.name}: another process runs")
            elif count <= self._marks[entry.name][1]:
                found.append(f"{entry.name}: does not go on")
            phase = self._ledger.phase(entry)
            statuses = entry.pod.get("status", {}).get("containerStatuses") or [{}]
            if phase != "Running" or statuses[0].get("restartCount") != 0 or "running" not in (statuses[0].get("state") or {}):
                found.append(f"{entry.name}: {phase} {statuses[0].get('state')}")
                self._entries.remove(entry)
                self._ledger.delete(entry)
            found += [f"{entry.name}: {text}" for text in entry.verdicts]
            entry.wrong = ""
            self._marks[entry.name] = (mark, count)
        return found

    def delete(self) -> None:
        for entry in self._entries:
            self._ledger.delete(entry)
