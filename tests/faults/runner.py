"""One run: many faults in a row on one user's cluster, and the table of what became of the Pods."""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Sequence

from tests.faults import api, kinds
from tests.faults.ledger import Ledger, Residents
from tests.faults.victim import Victim
from tests.testbed import commands

#: Pods that may be on their way while the next fault is injected: faults meet what former ones left behind.
IN_FLIGHT = 6


@dataclasses.dataclass
class Row:
    injected: int = 0
    pods: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0

    def add(self, other: Row) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass
class Result:
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> Row:
        total = Row()
        for row in self.rows.values():
            total.add(row)
        return total

    def merge(self, other: Result) -> None:
        for name, row in other.rows.items():
            self.rows.setdefault(name, Row()).add(row)
        self.problems += other.problems
        self.seconds = max(self.seconds, other.seconds)

    def table(self) -> str:
        lines = ["| fault | injected | Pods | lost | doubled | wrong end |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
        for name in [name for name in kinds.KINDS if name in self.rows]:
            lines.append(_line(name, self.rows[name]))
        return "\n".join([*lines, _line("**all**", self.total)])


def _line(name: str, row: Row) -> str:
    return f"| {name} | {row.injected} | {row.pods} | {row.lost} | {row.doubled} | {row.wrong} |"


def schedule(count: int, dice: random.Random, names: Sequence[str] = ()) -> list[kinds.Kind]:
    """``count`` kinds in random order, each as often as its weight says, every one at least once if there is room."""
    chosen = [kinds.KINDS[name] for name in names] or list(kinds.KINDS.values())
    total = sum(kind.weight for kind in chosen)
    planned = [kind for kind in chosen for _ in range(max(1, int(count * kind.weight / total)))]
    dice.shuffle(planned)
    planned += dice.choices(chosen, [kind.weight for kind in chosen], k=max(0, count - len(planned)))
    return planned[:count]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(victim: Victim, planned: Sequence[kinds.Kind], dice: random.Random, *, outage: float = 60.0) -> Result:
    """Inject ``planned`` one after the other. The victim's cluster runs; it is left running, without Pods."""
    result = Result()
    ledger = Ledger(victim)
    residents = Residents(ledger)
    scene = kinds.Scene(victim, ledger, dice, outage)
    ledger.start()
    residents.start()
    began = time.monotonic()
    names: list[str] = []
    try:
        for number, kind in enumerate(planned):
            scene.number = number
            names.append(kind.name)
            start = time.monotonic()
            row = result.rows.setdefault(kind.name, Row())
            try:
                kind.inject(scene)
                row.injected += 1
            except (AssertionError, TimeoutError, api.APIError, commands.TestbedError) as exc:
                result.problems.append(f"fault {number}, {kind.name}: not injected: {exc}")
                say(result.problems[-1])
                victim.disarm()
            ledger.look()
            while len(ledger.open()) > IN_FLIGHT:
                time.sleep(0.3)
                ledger.look()
            for problem in residents.problems():
                row.wrong += 1
                result.problems.append(f"fault {number}, {kind.name}: {problem}")
                say(result.problems[-1])
                residents.start()
            took = time.monotonic() - start
            say(f"{victim.user} {number + 1}/{len(planned)} {kind.name}: {took:.1f} s, {len(ledger.open())} Pods on their way")
        ledger.settle(300)
    finally:
        ledger.stop()
    result.seconds = time.monotonic() - began
    _final(victim, ledger, residents, result, names)
    return result


def _final(victim: Victim, ledger: Ledger, residents: Residents, result: Result, names: list[str]) -> None:
    """Count by accounting, and see that nothing is left of the Pods."""
    residents.delete()
    for entry in ledger.open():
        entry.lost = entry.lost or "not judged before the end of the run"
    jobs = victim.jobs(accounting=True)
    for entry in ledger.entries.values():
        ledger.count_jobs(entry, jobs.get(entry.uid, []))
        if entry.fault < 0:
            continue
        row = result.rows[names[entry.fault]]
        row.pods += 1
        row.lost += bool(entry.lost)
        row.doubled += bool(entry.doubled)
        row.wrong += bool(entry.wrong)
        for text in entry.verdicts:
            result.problems.append(f"fault {entry.fault}, {names[entry.fault]}: Pod {entry.name} ({entry.uid}): {text}")
    for text in _leftovers(victim):
        result.problems.append(f"left over: {text}")


def _leftovers(victim: Victim) -> list[str]:
    """Folders and jobs of Pods that are gone from the API. They have some time to go."""
    end = time.monotonic() + 120
    while True:
        folders = victim.run("ls", f"{victim.state}/pods").stdout.split()
        jobs = [f"job {job['id']} {job['name']}" for job in victim.queue() if job["name"] != "hpk-faults"]
        if not (folders or jobs) or time.monotonic() > end:
            return folders + jobs
        time.sleep(1.0)
