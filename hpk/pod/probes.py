"""The I/O around prober.py: runs the checks of all containers when they are due and tells the verdicts."""

from __future__ import annotations

import time

from hpk.pod import checks, execs, loop, prober, runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Probes:
    """``verdict(container, kind, ok)`` when a probe changes its mind; ``event(type, reason, message, container)`` at each failure."""

    def __init__(
        self,
        looper: loop.Loop,
        runner: execs.Execs,
        pod_ip: str,
        verdict: Callable[[str, str, bool], None],
        event: Callable[[str, str, str, str], None],
    ) -> None:
        self._loop = looper
        self._execs = runner
        self._pod_ip = pod_ip
        self._verdict = verdict
        self._event = event
        self._workers: dict[str, list[prober.Worker]] = {}

    def start(self, spec: dict[str, Any], instance: runtime.Instance) -> None:
        """Begin to probe an instance that runs: by its startup probe first, then by the others."""
        self.stop(spec["name"])
        started = time.monotonic()
        kinds = [prober.STARTUP] if spec.get("startupProbe") else [prober.READINESS, prober.LIVENESS]
        self._begin(spec, instance, kinds, started)

    def stop(self, name: str) -> None:
        """End the probing of a container; results that are under way are dropped."""
        for worker in self._workers.pop(name, []):
            worker.over = True

    def _begin(self, spec: dict[str, Any], instance: runtime.Instance, kinds: list[str], started: float) -> None:
        for kind in kinds:
            probe = spec.get(f"{kind}Probe")
            if probe:
                worker = prober.Worker(kind, probe, started)
                self._workers.setdefault(spec["name"], []).append(worker)
                self._plan(worker, spec, instance, started)

    def _plan(self, worker: prober.Worker, spec: dict[str, Any], instance: runtime.Instance, started: float) -> None:
        if not worker.over:
            self._loop.later(worker.due - time.monotonic(), lambda: self._check(worker, spec, instance, started))

    def _check(self, worker: prober.Worker, spec: dict[str, Any], instance: runtime.Instance, started: float) -> None:
        if worker.over:
            return
        worker.begun(time.monotonic())
        told = False

        def done(ok: bool, text: str) -> None:
            nonlocal told
            if told or worker.over:
                return
            told = True
            if not ok:
                words = f"{worker.kind.capitalize()} probe failed: {text}"
                self._event("Warning", "Unhealthy", words, spec["name"])
            verdict = worker.result(ok)
            self._plan(worker, spec, instance, started)
            if verdict is not None:
                self._verdict(spec["name"], worker.kind, verdict)
                if worker.kind == prober.STARTUP and verdict and self._workers.get(spec["name"]):
                    self._begin(spec, instance, [prober.READINESS, prober.LIVENESS], started)
            elif not ok:
                self._verdict(spec["name"], "", False)  # nothing has changed but the Event

        self._run(worker, spec, instance, done)

    def _run(self, worker: prober.Worker, spec: dict[str, Any], instance: runtime.Instance, done: Callable[[bool, str], None]) -> None:
        probe = worker.probe
        if probe.get("exec") is not None:

            def ended(code: int, output: str) -> None:
                if code == execs.TIMED_OUT:
                    done(False, f'command timed out: "{" ".join(command)}" timed out after {worker.timeout:g}s')
                else:
                    done(code == 0, output)

            command = list(probe["exec"].get("command") or [])
            self._execs.run(instance.program, command, instance.environment, spec.get("workingDir") or "/", worker.timeout, ended)
        elif probe.get("httpGet") is not None:
            checks.http(self._loop, probe["httpGet"], self._pod_ip, worker.timeout, done)
        elif probe.get("tcpSocket") is not None:
            checks.tcp(self._loop, probe["tcpSocket"], self._pod_ip, worker.timeout, done)
        elif probe.get("grpc") is not None:
            checks.grpc_health(self._loop, probe["grpc"], self._pod_ip, worker.timeout, done)
        else:
            self._loop.later(0, lambda: done(False, "the probe has no action that this version knows"))
