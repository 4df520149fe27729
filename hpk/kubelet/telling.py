"""What a worker says about its Pod: the status in the API, and Events."""

from __future__ import annotations

import logging
from typing import Any

from hpk import files, paths, records
from hpk.kube import events
from hpk.kubelet import status, status_manager, stopping

log = logging.getLogger(__name__)

Object = dict[str, Any]


class Teller:
    """Of one Pod. ``since``: Events of reports that are older (seconds since the epoch) were recorded by an earlier kubelet."""

    def __init__(
        self, pod: Object, pod_dir: paths.PodDir, recorder: events.Recorder, statuses: status_manager.StatusManager, since: float
    ) -> None:
        self._dir = pod_dir
        self._recorder = recorder
        self._statuses = statuses
        self._since = since
        self._plan: dict[str, tuple[str, Object]] | None = None
        self._conditions: dict[str, Object] = {}
        self._event_seq = 0
        self.start_time: str = (pod.get("status") or {}).get("startTime") or records.now()

    def planned(self) -> None:
        """There is a new plan."""
        self._plan = None

    def show(
        self, pod: Object, report: Object | None, ended: status.Ended | None, waiting: status.Waiting, queued: tuple[str, str] | None
    ) -> None:
        """Make the status of these facts known. A Pod that has ended in the API stays as it is there."""
        current = pod.get("status") or {}
        if current.get("phase") in status.TERMINAL:
            return
        plan = self._from_plan() if report is not None else {}
        facts = status.Facts(
            now=records.now(),
            start_time=self.start_time,
            report=report,
            ended=ended,
            waiting=waiting,
            queued=queued,
            images={name: image for name, (image, _) in plan.items()},
            users={name: user for name, (_, user) in plan.items()},
        )
        made = status.build(pod, facts, {**status.conditions(current), **self._conditions})
        self._conditions = status.conditions(made)
        self._statuses.set(pod, made)

    def _from_plan(self) -> dict[str, tuple[str, Object]]:
        """imageID and user of each container, as planned; read once."""
        if self._plan is None:
            try:
                plan = files.read_json(self._dir.plan) or {}
            except (ValueError, OSError) as exc:
                log.warning("%s: %s", self._dir.plan, exc)
                plan = {}
            containers = [*(plan.get("initContainers") or []), *(plan.get("containers") or [])]
            self._plan = {item["name"]: (item.get("imageID") or "", status.linux_user(item)) for item in containers}
        return self._plan

    def event(self, pod: Object, kind: str, reason: str, message: str, *, container: str = "") -> None:
        """Record an Event about the Pod, or one of its containers."""
        field = ""
        if container:
            init = any(item["name"] == container for item in pod["spec"].get("initContainers") or [])
            field = f"spec.{'initContainers' if init else 'containers'}{{{container}}}"
        self._recorder.event(pod, kind, reason, message, field_path=field)

    def killing(self, pod: Object, report: Object | None) -> None:
        """As upstream: one Killing for each container that runs. The supervisor does not know of a deletion before it is told."""
        for container in (report or {}).get("containerStatuses") or []:
            if "running" in (container.get("state") or {}):
                self.event(pod, "Normal", "Killing", f"Stopping container {container['name']}", container=container["name"])

    def reported(self, pod: Object, report: Object) -> bool:
        """Record the Events of a report that are new; whether there were any."""
        before = self._event_seq
        for item in report.get("events") or []:
            seq = int(item.get("seq") or 0)
            if seq <= self._event_seq:
                continue
            self._event_seq = seq
            if stopping.epoch(str(item.get("time") or "")) >= self._since - 1:
                self.event(
                    pod,
                    str(item.get("type") or "Normal"),
                    str(item.get("reason") or "Unknown"),
                    str(item.get("message") or ""),
                    container=str(item.get("container") or ""),
                )
        return self._event_seq > before
