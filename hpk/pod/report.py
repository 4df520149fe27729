"""The Machine's facts as a report (records.py): Kubernetes' own ContainerStatus objects, without the image's fields. Pure."""

from __future__ import annotations

from hpk import records
from hpk.pod import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes of all termination messages of a Pod together (API: terminationMessagePath).
MAX_MESSAGES = 12 * 1024


def report(pod: machine.Machine, facts: dict[str, Any], seq: int) -> dict[str, Any]:
    """Return the report. ``facts`` are the fields that the Machine does not know: jobID, host, hostIP, podIP, startedAt, ..."""
    share = MAX_MESSAGES // max(1, len(pod.containers))
    return {
        "uid": pod.plan["uid"],
        "seq": seq,
        "phase": pod.phase,
        # while containers are being stopped the Pod is Running, and why it stops is told at the end
        "reason": pod.reason if pod.phase != "Running" else "",
        "message": pod.message if pod.phase != "Running" else "",
        **facts,
        "initialized": pod.initialized,
        "initContainerStatuses": [_status(pod, container, share) for container in pod.init],
        "containerStatuses": [_status(pod, container, share) for container in pod.main],
        "events": [{**event, "time": records.now(event["time"])} for event in pod.events],
    }


def _status(pod: machine.Machine, container: machine.Container, share: int) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": container.name,
        "state": _state(pod, container, share),
        "lastState": {},
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
    }
    if container.ever_started:
        # while it waits to run again, the id is that of the instance that ended
        status["containerID"] = _container_id(pod, container, container.restarts)
    if container.last is not None:
        status["lastState"] = {"terminated": _terminated(pod, container, container.last, share)}
    return status


def _state(pod: machine.Machine, container: machine.Container, share: int) -> dict[str, Any]:
    if container.state == machine.RUNNING and not container.hook_pending:
        return {"running": {"startedAt": records.now(container.started_wall)}}
    if container.state == machine.TERMINATED and container.terminated is not None:
        return {"terminated": _terminated(pod, container, container.terminated, share)}
    if container.waiting_reason:
        return {"waiting": {"reason": container.waiting_reason, "message": container.waiting_message}}
    return {"waiting": {"reason": "PodInitializing" if pod.init and not _turn_of(pod, container) else "ContainerCreating"}}


def _turn_of(pod: machine.Machine, container: machine.Container) -> bool:
    """Whether a waiting container is being created, rather than waiting for init containers."""
    return pod.initialized or container.state in (machine.STARTING, machine.RUNNING)


def _terminated(pod: machine.Machine, container: machine.Container, end: dict[str, Any], share: int) -> dict[str, Any]:
    terminated = {"exitCode": end["exitCode"], "reason": end["reason"]}
    if "startedAt" in end:
        terminated["startedAt"] = records.now(end["startedAt"])
        terminated["finishedAt"] = records.now(end["finishedAt"])
        terminated["containerID"] = _container_id(pod, container, end["restarts"])
    if end.get("message"):
        terminated["message"] = end["message"].encode()[:share].decode(errors="ignore")
    return terminated


def _container_id(pod: machine.Machine, container: machine.Container, restarts: int) -> str:
    return f"hpk://{pod.plan['uid']}/{container.name}/{restarts}"
