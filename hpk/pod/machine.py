"""What happens to the Pod's containers, as a state machine without I/O: events in, actions out.

The supervisor (supervisor.py) tells events by calling the methods of Machine that are named after them, and then carries out
``take_actions()``; it calls ``tick()`` when ``next_time()`` has come. Rules and words are the kubelet's: computePodActions and
killPod in pkg/kubelet/kuberuntime, KEP-753 (sidecars), pkg/kubelet/active_deadline.go.

One container goes through ``waiting`` (perhaps in back-off) -> ``starting`` (the runtime was started) -> ``running`` (the
program was executed; postStart may still run) -> ``terminated``, and from there back to ``waiting`` if it is to run again.
Stopping one has stages: ``preStop`` (the hook runs), ``turn`` (a sidecar waits for those before it), ``term`` (the stop
signal was sent), ``kill``.
"""

from __future__ import annotations

from hpk.pod import restart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WAITING = "waiting"
STARTING = "starting"
RUNNING = "running"
TERMINATED = "terminated"

PRE_STOP = "preStop"
TURN = "turn"
TERM = "term"
KILL = "kill"

#: Seconds that a container gets at least between its stop signal and SIGKILL (the kubelet's minimumGracePeriodInSeconds).
MINIMUM_GRACE = 2.0
#: Records of Events that a report carries.
MAX_EVENTS = 50

DEADLINE_MESSAGE = "Pod was active on the node longer than the specified deadline"


class Container:
    """One container's facts. ``spec`` is its part of the plan."""

    def __init__(self, spec: dict[str, Any], kind: str) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.kind = kind  # "init", "sidecar" or "main"
        self.state = WAITING
        self.waiting_reason = ""
        self.waiting_message = ""
        self.restarts = 0  # number of the present or last instance
        self.ever_started = False
        self.start_at: float | None = None  # end of the back-off, monotonic
        self.started_wall = 0.0
        self.finished = 0.0
        self.terminated: dict[str, Any] | None = None  # the last instance's end, as in ContainerStateTerminated
        self.last: dict[str, Any] | None = None  # the end before the present instance
        self.backoff = restart.Backoff()
        self.hook_pending = False  # postStart runs
        self.startup_ok = False
        self.readiness_ok = False
        self.stage = ""
        self.kill_at = 0.0

    @property
    def alive(self) -> bool:
        return self.state in (STARTING, RUNNING)

    @property
    def started(self) -> bool:
        """ContainerStatus.started: runs, postStart is over, and the startup probe has succeeded."""
        return self.state == RUNNING and not self.hook_pending and (self.startup_ok or not self.spec.get("startupProbe"))

    @property
    def ready(self) -> bool:
        """ContainerStatus.ready; an init container is ready when it has done its work."""
        if self.kind == "init":
            return self.succeeded
        return self.started and (self.readiness_ok or not self.spec.get("readinessProbe"))

    @property
    def succeeded(self) -> bool:
        return self.state == TERMINATED and self.terminated is not None and self.terminated["exitCode"] == 0

    def hook(self, name: str) -> Any:
        return (self.spec.get("lifecycle") or {}).get(name)


class Machine:
    """The Pod. ``now`` is monotonic time in seconds and ``wall`` the time since the epoch; both are set before each event."""

    def __init__(self, plan: dict[str, Any], now: float, wall: float) -> None:
        self.plan = plan
        self.now = now
        self.wall = wall
        self.init = [
            Container(spec, "sidecar" if spec.get("restartPolicy") == "Always" else "init") for spec in plan.get("initContainers", [])
        ]
        self.main = [Container(spec, "main") for spec in plan["containers"]]
        self.containers = {container.name: container for container in self.init + self.main}
        self.pod = f"{plan['name']}_{plan['namespace']}({plan['uid']})"
        self.grace = float(plan["terminationGracePeriodSeconds"])
        self.initialized = False
        self.stopping = False
        self.failed = False  # the phase is Failed whatever the exit codes are
        self.phase = "Running"
        self.reason = ""
        self.message = ""
        self.deadline: float | None = None
        self.actions: list[tuple[Any, ...]] = []
        self.events: list[dict[str, Any]] = []
        self._event_seq = 0
        self.changed = True

    # -- events -----------------------------------------------------------------------------------------------------------

    def at(self, now: float, wall: float) -> Machine:
        """Set the time of the event that follows: ``machine.at(now, wall).exited(...)``."""
        self.now = now
        self.wall = wall
        return self

    def begin(self, deadline: float | None = None) -> None:
        """The sandbox and the volumes are there. ``deadline`` is the monotonic time of activeDeadlineSeconds."""
        self.deadline = deadline
        self._sync()

    def program_started(self, name: str) -> None:
        """The container's own program runs."""
        container = self.containers[name]
        if container.state != STARTING:
            return
        container.state = RUNNING
        container.started_wall = self.wall
        self.changed = True
        self.event("Normal", "Started", "Container started", name)
        if container.stage:
            pass  # it has been told to stop meanwhile
        elif container.hook("postStart"):
            container.hook_pending = True
            self._act("post_start", name)
        else:
            self._act("probe", name)
        self._sync()

    def exited(self, name: str, exit_code: int, reason: str = "", message: str = "") -> None:
        """The container ended. ``reason`` is "" for the usual one, OOMKilled, or StartError (it never began)."""
        container = self.containers[name]
        if not container.alive:
            return
        if container.state == STARTING:
            container.started_wall = self.wall
            if reason == "StartError":
                self.event("Warning", "Failed", f"Error: {message}", name)
            else:  # it was over before it was seen to run
                self.event("Normal", "Started", "Container started", name)
        container.state = TERMINATED
        container.finished = self.now
        container.hook_pending = container.startup_ok = container.readiness_ok = False
        container.stage = ""
        container.terminated = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "startedAt": self.wall if reason == "StartError" else container.started_wall,
            "finishedAt": self.wall,
            "restarts": container.restarts,
        }
        if message:
            container.terminated["message"] = message
        self.changed = True
        self._act("unprobe", name)
        self._sync()

    def post_start_done(self, name: str, ok: bool) -> None:
        """The postStart hook is over."""
        container = self.containers[name]
        if not container.hook_pending:
            return
        container.hook_pending = False
        self.changed = True
        if ok:
            self._act("probe", name)
        else:
            self.event("Warning", "FailedPostStartHook", "PostStartHook failed", name)
            self.kill_container(name, "FailedPostStartHook")
        self._sync()

    def pre_stop_done(self, name: str, ok: bool) -> None:
        """The preStop hook is over."""
        container = self.containers[name]
        if not ok:
            self.event("Warning", "FailedPreStopHook", "PreStopHook failed", name)
        if container.stage == PRE_STOP:
            container.stage = TURN
            self._sync()

    def probe_result(self, name: str, kind: str, ok: bool) -> None:
        """A probe (``startup``, ``readiness``, ``liveness``) has changed its mind, thresholds included."""
        container = self.containers[name]
        if container.state != RUNNING or not kind:
            return
        if kind == "readiness":
            self.changed = self.changed or container.readiness_ok != ok
            container.readiness_ok = ok
        elif kind == "startup" and ok:
            container.startup_ok = True
            self.changed = True
        elif not ok and not container.stage:
            probe = container.spec.get(f"{kind}Probe") or {}
            grace = probe.get("terminationGracePeriodSeconds")
            self.kill_container(name, f"Container {name} failed {kind} probe, will be restarted", grace)
        self._sync()

    def stop(self, grace: float | None = None, reason: str = "", message: str = "", failed: bool = False) -> None:
        """End the Pod. ``grace`` in seconds, None: the Pod's own. Called again it may only shorten the time.

        ``failed``: the phase will be Failed with ``reason``, whatever the exit codes are; else they decide.
        """
        seconds = self.grace if grace is None else max(0.0, float(grace))
        if reason and not self.reason:
            self.reason, self.message = reason, message
        self.failed = self.failed or failed
        self.changed = True
        if not self.stopping:
            self.stopping = True
            self.deadline = None
            for container in self.containers.values():
                if not container.alive:
                    container.start_at = None
        for container in self.containers.values():
            if container.alive:
                if container.stage:
                    container.kill_at = min(container.kill_at, self.now + max(seconds, MINIMUM_GRACE))
                else:
                    self._stop_container(container, seconds)
        self._sync()

    def tick(self) -> None:
        """Time has passed."""
        if self.deadline is not None and self.now >= self.deadline and not self.stopping:
            self.stop(None, "DeadlineExceeded", DEADLINE_MESSAGE, failed=True)
        else:
            self._sync()

    # -- answers ----------------------------------------------------------------------------------------------------------

    def next_time(self) -> float | None:
        """Monotonic time at which tick() has something to do; None: never."""
        times = [] if self.deadline is None else [self.deadline]
        for container in self.containers.values():
            if container.state == WAITING and container.start_at is not None and not self.stopping:
                times.append(container.start_at)
            if container.alive and container.stage and container.stage != KILL:
                times.append(container.kill_at)
        return min(times) if times else None

    def take_actions(self) -> list[tuple[Any, ...]]:
        """The actions since the last call, in order:

        ("start", name)  ("signal", name, signal)  ("kill", name)  ("post_start", name)  ("pre_stop", name, seconds)
        ("probe", name)  ("unprobe", name)  ("done",)
        """
        actions, self.actions = self.actions, []
        return actions

    def event(self, kind: str, reason: str, message: str, container: str = "") -> None:
        """Note a Kubernetes Event for the report."""
        self._event_seq += 1
        self.events.append(
            {
                "seq": self._event_seq, "time": self.wall, "type": kind, "reason": reason, "message": message, "container": container,
            }
        )  # fmt: skip
        del self.events[:-MAX_EVENTS]
        self.changed = True

    def kill_container(self, name: str, message: str, grace: float | None = None) -> None:
        """Stop one container of a Pod that goes on; policy then decides whether it starts again."""
        container = self.containers[name]
        if container.alive and not container.stage:
            self.event("Normal", "Killing", message, name)
            self._stop_container(container, self.grace if grace is None else float(grace), announce=False)
            self._sync()

    # -- the inside -------------------------------------------------------------------------------------------------------

    def _act(self, *action: Any) -> None:
        self.actions.append(action)

    def _sync(self) -> None:
        """Do what the present facts ask for. May be called at any time, does nothing twice."""
        if self.phase != "Running":
            return
        self._drive_stages()
        if not self.stopping:
            self._start_what_is_due()
        if self.stopping and self.phase == "Running" and not any(container.alive for container in self.containers.values()):
            self._finish()

    def _start_what_is_due(self) -> None:
        for container in self.init:
            if container.kind == "sidecar":
                if not container.alive:
                    self._start_or_wait(container)
                if not container.started and not self.initialized:
                    return
            elif not self.initialized and not container.succeeded:
                if not container.alive and not self._start_or_wait(container):
                    self.stop(failed=True)
                return
        if not self.initialized:
            self.initialized = self.changed = True
        over = True
        for container in self.main:
            if container.alive:
                over = False
                if container.hook_pending or (container.state == STARTING and container.hook("postStart")):
                    break  # the kubelet starts containers one by one, each with its hook
            elif self._start_or_wait(container):
                over = False
                if container.hook("postStart"):
                    break
        if over and all(container.state == TERMINATED for container in self.main):
            self.stop()

    def _start_or_wait(self, container: Container) -> bool:
        """Start a container that does not run, now or after its back-off. False: it is not to run again."""
        if container.state == WAITING and container.start_at is not None:
            if self.now < container.start_at:
                return True
        elif container.state == TERMINATED:
            assert container.terminated is not None
            spec = container.spec
            if not restart.should_restart(
                self.plan["restartPolicy"],
                spec.get("restartPolicy"),
                spec.get("restartPolicyRules") or [],
                container.kind == "init",
                container.terminated["exitCode"],
            ):
                return False
            container.last = container.terminated
            delay = container.backoff.remaining(self.now, container.finished)
            if delay > 0:
                container.state = WAITING
                container.start_at = self.now + delay
                container.waiting_reason = "CrashLoopBackOff"
                container.waiting_message = restart.message(container.backoff.delay, container.name, self.pod)
                text = f"Back-off restarting failed container {container.name} in pod {self.pod}"
                self.event("Warning", "BackOff", text, container.name)
                self.changed = True
                return True
        if container.ever_started:
            container.restarts += 1
            container.backoff.restarted(container.finished)
        container.ever_started = True
        container.start_at = None
        container.state = STARTING
        container.waiting_reason = container.waiting_message = ""
        container.terminated = None
        container.stage = ""
        self.changed = True
        self.event("Normal", "Created", "Container created", container.name)
        self._act("start", container.name)
        return True

    def _stop_container(self, container: Container, grace: float, announce: bool = True) -> None:
        container.kill_at = self.now + max(grace, MINIMUM_GRACE)
        if announce:
            self.event("Normal", "Killing", f"Stopping container {container.name}", container.name)
        self._act("unprobe", container.name)
        if container.state == RUNNING and container.hook("preStop") and grace > 0:
            container.stage = PRE_STOP
            self._act("pre_stop", container.name, grace)
        else:
            container.stage = TURN
        self.changed = True

    def _drive_stages(self) -> None:
        for container in [*self.main, *reversed(self.init)]:
            if not container.alive or not container.stage or container.stage == KILL:
                continue
            over = self.now >= container.kill_at
            if container.stage == PRE_STOP and over:
                container.stage = TURN
            if container.stage == TURN and (over or self._has_turn(container)):
                container.stage = TERM
                container.kill_at = max(container.kill_at, self.now + MINIMUM_GRACE)
                self._act("signal", container.name, container.spec.get("stopSignal") or "SIGTERM")
            elif container.stage == TERM and over:
                container.stage = KILL
                self._act("kill", container.name)

    def _has_turn(self, container: Container) -> bool:
        """Sidecars end after all main containers, the last one first."""
        if container.kind != "sidecar" or not self.stopping:
            return True
        later = [other for other in self.init[self.init.index(container) + 1 :] if other.kind == "sidecar"]
        return not any(other.alive for other in self.main + later)

    def _finish(self) -> None:
        for container in self.containers.values():
            if container.state == WAITING and container.last is not None:
                container.state = TERMINATED  # it was in back-off: its last end stands
                container.terminated = container.last
                container.last = None
            elif container.state == WAITING and container.kind == "main" and self.initialized:
                # as the kubelet's status manager does for what it cannot tell any more
                container.state = TERMINATED
                text = "The container could not be located when the pod was terminated"
                container.terminated = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": text}
        good = not self.failed and all(container.succeeded for container in self.main)
        self.phase = "Succeeded" if good else "Failed"
        self.changed = True
        self._act("done")
