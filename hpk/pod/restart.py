"""When a container that ended is started again. Pure.

The rules are the kubelet's: pkg/kubelet/container/helpers.go (ShouldContainerBeRestarted), kuberuntime_manager.go (doBackOff),
client-go's flowcontrol.Backoff, and KEP-5307 for restartPolicyRules.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Delay before the second restart in a row, in seconds; the first restart is immediate. It doubles up to the maximum.
INITIAL_DELAY = 10.0
MAXIMUM_DELAY = 300.0


class Backoff:
    """The delays of one container's restarts, in seconds of any one clock."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.updated = 0.0

    def remaining(self, now: float, finished: float) -> float:
        """Seconds to wait before the container that ended at ``finished`` may start; 0: now."""
        if self.delay == 0.0 or self._expired(finished):
            return 0.0
        return max(0.0, finished + self.delay - now)

    def restarted(self, finished: float) -> None:
        """Count a restart after the end at ``finished``: the next one waits longer, unless the container ran long enough."""
        if self.delay == 0.0 or self._expired(finished):
            self.delay = INITIAL_DELAY
        else:
            self.delay = min(self.delay * 2, MAXIMUM_DELAY)
        self.updated = finished

    def _expired(self, finished: float) -> bool:
        return finished - self.updated > 2 * MAXIMUM_DELAY


def should_restart(pod_policy: str, container_policy: str | None, rules: list[dict[str, Any]], init: bool, exit_code: int) -> bool:
    """Whether a container that ended with ``exit_code`` is to run again, by the Pod's and its own policy and rules.

    ``init`` containers that are not sidecars count "Always" of the Pod as "OnFailure". A rule that matches decides alone.
    """
    for rule in rules:
        exit_codes = rule.get("exitCodes") or {}
        listed = exit_code in (exit_codes.get("values") or [])
        if exit_codes.get("operator") == ("In" if listed else "NotIn"):
            return rule.get("action") == "Restart"
    policy = container_policy or pod_policy
    if policy == "Never":
        return False
    if policy == "Always" and not (init and container_policy is None):
        return True
    return exit_code != 0


def message(delay: float, container: str, pod: str) -> str:
    """The text of state.waiting with reason CrashLoopBackOff. ``pod`` is name_namespace(uid)."""
    return f"back-off {go_duration(delay)} restarting failed container={container} pod={pod}"


def go_duration(seconds: float) -> str:
    """Seconds as Go prints a time.Duration: 10s, 1m20s, 5m0s."""
    whole = int(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
