"""The status that a Pod shows, from what is known of it. Pure.

Follows the kubelet's pkg/kubelet/kubelet_pods.go (convertToAPIContainerStatuses, getPhase) and status/generate.go field by field.
Only fields that a kubelet owns are made; conditions of others (readiness gates) are left alone by the way it is sent
(status_manager.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]

#: Reason and exit code for a container whose end nobody saw (kubecontainer.ContainerReasonStatusUnknown).
UNKNOWN_REASON = "ContainerStatusUnknown"
UNKNOWN_CODE = 137
TERMINAL = ("Succeeded", "Failed")


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Why nothing runs yet. ``container`` None: all containers wait as ContainerCreating (or PodInitializing)."""

    reason: str = ""
    message: str = ""
    container: str | None = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a Pod ended: its last phase, and what to say of containers that were not seen to end."""

    phase: str
    reason: str = ""
    message: str = ""
    container_reason: str = UNKNOWN_REASON
    container_message: str = "The container could not be located when the pod was terminated"
    exit_code: int = UNKNOWN_CODE
    never_ran: bool = False
    """Refused before anything was made: no container is shown, as upstream's rejectPod does."""
    killed_reason: str = ""
    """Replaces the reason ``Error`` of a container that ended by SIGKILL, when Slurm knows better (OOMKilled)."""
    disruption: tuple[str, str] | None = None
    """Reason and message of the condition DisruptionTarget."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that decides a status. Times are RFC 3339."""

    now: str
    start_time: str
    report: Object | None = None
    """The supervisor's last report (records.py)."""
    ended: Ended | None = None
    waiting: Waiting = Waiting()
    queued: tuple[str, str] | None = None
    """Reason and message of the condition PodReadyToStartContainers while Slurm has the job in its queue."""
    images: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Container name to imageID."""
    users: Mapping[str, Object] = dataclasses.field(default_factory=dict)
    """Container name to status.user (KEP-3619)."""
    initialized: bool = False
    """Whether the init containers are done; true for a Pod without any."""


def _restartable(container: Object) -> bool:
    return container.get("restartPolicy") == "Always"


def _volume_mounts(container: Object) -> list[Object]:
    """status.volumeMounts (KEP-3857)."""
    mounts = []
    for mount in container.get("volumeMounts") or []:
        shown: Object = {"name": mount["name"], "mountPath": mount["mountPath"]}
        if mount.get("readOnly"):
            shown |= {"readOnly": True, "recursiveReadOnly": "Disabled"}
        mounts.append(shown)
    return mounts


def _state(container: Object, reported: Object, default: Object, facts: Facts) -> Object:
    """status.state. When the Pod has ended, a container that began and was not seen to end has an unknown end (TerminatePod)."""
    state: Object = reported.get("state") or {"waiting": default}
    end = facts.ended
    if end is None:
        return state
    if "terminated" in state:
        if end.killed_reason and state["terminated"].get("exitCode") == UNKNOWN_CODE:
            return {"terminated": {**state["terminated"], "reason": end.killed_reason}}
        return state
    begun = "running" in state or reported.get("started") or reported.get("lastState")
    if begun or facts.initialized:
        return {"terminated": _unknown_end(end, (state.get("running") or {}).get("startedAt"), reported.get("containerID"))}
    return state


def _container_status(container: Object, reported: Object, default: Object, facts: Facts) -> Object:
    name = container["name"]
    state = _state(container, reported, default, facts)
    running = "running" in state
    status: Object = {
        "name": name,
        "state": state,
        "lastState": reported.get("lastState") or {},
        "ready": bool(reported.get("ready")) and running,
        "restartCount": int(reported.get("restartCount") or 0),
        "image": container.get("image") or "",
        "imageID": facts.images.get(name, "") if reported and "waiting" not in state else "",
        "started": bool(reported.get("started")) and running,
        "resources": container.get("resources") or {},
    }
    if reported.get("containerID"):
        status["containerID"] = reported["containerID"]
    if running:
        if requests := (container.get("resources") or {}).get("requests"):
            status["allocatedResources"] = requests
        if name in facts.users:
            status["user"] = facts.users[name]
    if mounts := _volume_mounts(container):
        status["volumeMounts"] = mounts
    return status


def _succeeded(state: Object) -> bool:
    return (state.get("terminated") or {}).get("exitCode") == 0


def _unknown_end(ended: Ended, started: str | None, container_id: str | None) -> Object:
    end: Object = {"exitCode": ended.exit_code, "reason": ended.container_reason, "message": ended.container_message}
    end |= {"startedAt": started, "finishedAt": None}  # as the API shows times that nobody knows
    if container_id:
        end["containerID"] = container_id
    return end


def _statuses(pod: Object, facts: Facts) -> tuple[list[Object], list[Object]]:
    """containerStatuses and initContainerStatuses in the Pod's order."""
    spec = pod["spec"]
    inits = spec.get("initContainers") or []
    reported = {
        item["name"]: item
        for field in ("initContainerStatuses", "containerStatuses")
        for item in (facts.report or {}).get(field) or []  # of the report
    }
    facts = dataclasses.replace(facts, initialized=not inits or bool((facts.report or {}).get("initialized")))
    groups: list[list[Object]] = []
    for containers, is_init in ((spec["containers"], False), (inits, True)):
        group = []
        for container in containers:
            default: Object = {"reason": "PodInitializing" if not facts.initialized else "ContainerCreating"}
            if facts.waiting.container == container["name"]:
                default = {"reason": facts.waiting.reason, "message": facts.waiting.message}
            shown = _container_status(container, reported.get(container["name"]) or {}, default, facts)
            if is_init and not _restartable(container):
                shown["ready"] = _succeeded(shown["state"])  # an init container is ready when it has done its work
            group.append(shown)
        groups.append(group)
    return groups[0], groups[1]


def phase(pod: Object, statuses: Iterable[Object], inits: Iterable[Object], *, final: str | None) -> str:
    """The phase as the kubelet's getPhase() has it; an end only when ``final`` says that all is over."""
    if final:
        return final
    policies = {container["name"]: container for container in pod["spec"].get("initContainers") or []}
    for status in inits:
        container = policies.get(status["name"], {})
        if _restartable(container):
            if not status["started"] and not status["restartCount"]:
                return "Pending"
        elif not _succeeded(status["state"]) and not _succeeded(status["lastState"]):
            return "Pending"
    running = waiting = 0
    for status in statuses:
        state = status["state"]
        if "running" in state:
            running += 1
        elif "waiting" in state and not status["lastState"].get("terminated"):
            waiting += 1
    if waiting:
        return "Pending"
    return "Running"  # also between two runs of containers, and while the last ones are cleaned up


def _names(names: list[str]) -> str:
    """A list as Go prints it: upstream's messages have it so."""
    return "[" + " ".join(names) + "]"


def _containers_ready(pod: Object, by_name: Mapping[str, Object], now_phase: str) -> Object:
    if now_phase == "Succeeded":
        return {"status": "False", "reason": "PodCompleted"}
    if now_phase == "Failed":
        return {"status": "False", "reason": "PodFailed"}
    wanted = [item for item in pod["spec"].get("initContainers") or [] if _restartable(item)] + pod["spec"]["containers"]
    unready = [item["name"] for item in wanted if not by_name[item["name"]]["ready"]]
    if unready:
        return {"status": "False", "reason": "ContainersNotReady", "message": f"containers with unready status: {_names(unready)}"}
    return {"status": "True"}


def _ready(pod: Object, containers_ready: Object, conditions: Mapping[str, Object]) -> Object:
    if containers_ready["status"] != "True":
        return containers_ready
    problems = []
    for gate in pod["spec"].get("readinessGates") or []:
        kind = gate["conditionType"]
        if kind not in conditions:
            problems.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif conditions[kind]["status"] != "True":
            problems.append(f'the status of pod readiness gate "{kind}" is not "True", but {conditions[kind]["status"]}')
    if problems:
        return {"status": "False", "reason": "ReadinessGatesNotReady", "message": ", ".join(problems)}
    return {"status": "True"}


def _initialized(pod: Object, by_name: Mapping[str, Object], now_phase: str) -> Object:
    if now_phase == "Succeeded":
        return {"status": "True", "reason": "PodCompleted"}
    for container in pod["spec"]["containers"]:
        status = by_name[container["name"]]
        seen = "waiting" not in status["state"] and (status["state"].get("terminated") or {}).get("reason") != UNKNOWN_REASON
        if seen or status["restartCount"]:
            return {"status": "True"}  # a container of the Pod proper has run: the init containers are behind it
    incomplete = [
        container["name"]
        for container in pod["spec"].get("initContainers") or []
        if not by_name[container["name"]]["started" if _restartable(container) else "ready"]
    ]
    if incomplete:
        message = f"containers with incomplete status: {_names(incomplete)}"
        return {"status": "False", "reason": "ContainersNotInitialized", "message": message}
    return {"status": "True"}


def build(pod: Object, facts: Facts, before: Mapping[str, Object]) -> Object:
    """Return the part of PodStatus that the kubelet owns.

    ``before``: the Pod's present conditions by type. A condition whose status does not change keeps its lastTransitionTime.
    """
    statuses, inits = _statuses(pod, facts)
    by_name = {status["name"]: status for status in [*inits, *statuses]}
    now_phase = phase(pod, statuses, inits, final=facts.ended.phase if facts.ended else None)
    report = facts.report or {}
    sandbox = bool(report.get("sandboxReady")) and facts.ended is None
    queued = {} if sandbox or facts.ended or facts.queued is None else {"reason": facts.queued[0], "message": facts.queued[1]}
    containers_ready = _containers_ready(pod, by_name, now_phase)
    made: dict[str, Object] = {
        "PodReadyToStartContainers": {"status": "True" if sandbox else "False", **queued},
        "Initialized": _initialized(pod, by_name, now_phase),
        "Ready": _ready(pod, containers_ready, before),
        "ContainersReady": containers_ready,
        "PodScheduled": {"status": "True"},
    }
    if facts.ended and facts.ended.disruption:
        made["DisruptionTarget"] = {"status": "True", "reason": facts.ended.disruption[0], "message": facts.ended.disruption[1]}
    generation = pod["metadata"].get("generation")
    status: Object = {
        "phase": now_phase,
        "reason": facts.ended.reason if facts.ended else report.get("reason") or "",
        "message": facts.ended.message if facts.ended else report.get("message") or "",
        "startTime": facts.start_time,
        "conditions": [_condition(kind, value, before.get(kind), facts.now, generation) for kind, value in made.items()],
        "containerStatuses": statuses,
        "initContainerStatuses": inits or None,
    }
    if generation is not None:
        status["observedGeneration"] = generation
    if debuggers := pod["spec"].get("ephemeralContainers"):
        status["ephemeralContainerStatuses"] = [_refused_debugger(container) for container in debuggers]
    if facts.ended and facts.ended.never_ran:
        status |= {"containerStatuses": None, "initContainerStatuses": None}
    if host := report.get("hostIP"):
        status |= {"hostIP": host, "hostIPs": [{"ip": host}]}
    if address := report.get("podIP"):
        status |= {"podIP": address, "podIPs": [{"ip": address}]}
    return status


def _refused_debugger(container: Object) -> Object:
    """``kubectl debug`` waits for its container: this tells it that there will be none."""
    message = "spec.ephemeralContainers: not supported; use kubectl debug --copy-to"
    end = {"exitCode": 128, "reason": "StartError", "message": message, "startedAt": None, "finishedAt": None}
    return {
        "name": container["name"],
        "state": {"terminated": end},
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "image": container.get("image") or "",
        "imageID": "",
    }


def _condition(kind: str, value: Object, before: Object | None, now: str, generation: int | None) -> Object:
    changed = before is None or before.get("status") != value["status"]
    condition = {"type": kind, **value, "lastTransitionTime": now if changed or before is None else before.get("lastTransitionTime") or now}
    if generation is not None:
        condition["observedGeneration"] = generation
    return condition


def reported(pod: Object) -> Object | None:
    """Return what the API shows of a Pod that runs, in the form of a report of its supervisor; None for a Pod that does not run yet."""
    shown = pod.get("status") or {}
    statuses = [*(shown.get("containerStatuses") or []), *(shown.get("initContainerStatuses") or [])]
    if shown.get("phase") in TERMINAL or not any(item.get("containerID") for item in statuses):
        return None
    known = {kind: value["status"] == "True" for kind, value in conditions(shown).items()}
    return {
        "uid": pod["metadata"]["uid"],
        "seq": 0,
        "phase": "Running",
        "sandboxReady": known.get("PodReadyToStartContainers", False),
        "initialized": known.get("Initialized", False),
        "hostIP": shown.get("hostIP") or "",
        "podIP": shown.get("podIP") or "",
        "containerStatuses": shown.get("containerStatuses") or [],
        "initContainerStatuses": shown.get("initContainerStatuses") or [],
    }


def conditions(pod_status: Object) -> dict[str, Object]:
    return {item["type"]: item for item in pod_status.get("conditions") or []}


def patch(status: Object, current: Object) -> Object | None:
    """Return the strategic merge patch of ``.status`` that brings ``current`` (what the API has) to ``status``; None: nothing to do."""
    changes: Object = {}
    have = conditions(current)
    wanted = []
    for condition in status["conditions"]:
        old = have.get(condition["type"], {})
        fields = {key: old.get(key) for key in ("status", "reason", "message", "observedGeneration") if old.get(key)}
        if {key: value for key, value in condition.items() if key not in ("type", "lastTransitionTime")} != fields:
            # merged by type: a field that is no longer there must be named to go
            wanted.append({**{key: None for key in ("reason", "message") if key in fields}, **condition})
    if wanted:
        changes["conditions"] = wanted
    for key, value in status.items():
        if key == "conditions":
            continue
        if value in ("", None):
            if current.get(key):
                changes[key] = None
        elif current.get(key) != value:
            changes[key] = value
    return changes or None


def linux_user(planned: Object) -> Object:
    """status.user of a container (KEP-3619) from its plan record."""
    groups = planned.get("supplementalGroups") or []
    gid = int(planned.get("runAsGroup") or 0)
    return {"linux": {"uid": int(planned.get("runAsUser") or 0), "gid": gid, "supplementalGroups": sorted({gid, *groups})}}
