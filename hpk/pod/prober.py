"""One probe of one container instance, as a state machine without I/O (the kubelet's pkg/kubelet/prober/worker.go)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STARTUP = "startup"
READINESS = "readiness"
LIVENESS = "liveness"


class Worker:
    """``kind`` is one of the three above; ``started`` is the monotonic time at which the container's program began."""

    def __init__(self, kind: str, probe: dict[str, Any], started: float) -> None:
        self.kind = kind
        self.probe = probe
        self.period = max(1.0, float(probe.get("periodSeconds") or 10))
        self.timeout = max(1.0, float(probe.get("timeoutSeconds") or 1))
        self.due = started + float(probe.get("initialDelaySeconds") or 0)
        self.verdict: bool | None = None  # what was last told
        self.over = False  # it has said all that it has to say about this instance
        self._last: bool | None = None
        self._run = 0

    def begun(self, now: float) -> None:
        """The check that was due begins now: the next one is a period later, and never two at once."""
        self.due = max(self.due + self.period, now)

    def result(self, ok: bool) -> bool | None:
        """Take the result of one check. Returns the new verdict when a threshold is reached and it differs, else None."""
        if self.over:
            return None
        if ok is self._last:
            self._run += 1
        else:
            self._last, self._run = ok, 1
        threshold = int(self.probe.get("successThreshold" if ok else "failureThreshold") or (1 if ok else 3))
        if self._run < threshold:
            return None
        if (self.kind == STARTUP) or (self.kind == LIVENESS and not ok):
            self.over = True
        if ok is self.verdict:
            return None
        self.verdict = ok
        return ok
