"""The status that kubectl shows, compared with what upstream's kubelet makes of the same facts."""

from __future__ import annotations

from typing import Any

import pytest

from hpk.kubelet import outcome, status
from hpk.slurm import commands, states

NOW, THEN = "2026-01-02T03:04:05Z", "2026-01-01T00:00:00Z"


def pod(*, init: tuple[dict, ...] = (), containers: tuple[dict, ...] = ({"name": "main", "image": "busybox"},), **spec: Any) -> dict:
    return {
        "metadata": {"namespace": "default", "name": "a", "uid": "u", "generation": 3},
        "spec": {"containers": list(containers), "initContainers": list(init), **spec},
        "status": {},
    }


def facts(**values: Any) -> status.Facts:
    return status.Facts(now=NOW, start_time=THEN, **values)


def container(name: str = "main", **state: Any) -> dict:
    values = {"ready": False, "started": False, "restartCount": 0, "lastState": {}, "containerID": f"hpk://u/{name}/0"}
    return {"name": name, **values, **state}


RUNNING = {"state": {"running": {"startedAt": THEN}}, "ready": True, "started": True}


def ended(code: int, reason: str = "Error") -> dict:
    end = {"exitCode": code, "reason": "Completed" if code == 0 else reason, "startedAt": THEN, "finishedAt": NOW}
    return {"state": {"terminated": end}}


def report(*containers: dict, init: tuple[dict, ...] = (), **values: Any) -> dict:
    default = {"phase": "Running", "sandboxReady": True, "initialized": True, "hostIP": "10.0.0.1", "podIP": "10.0.0.1", "jobID": "7"}
    return {**default, "containerStatuses": list(containers), "initContainerStatuses": list(init), **values}


def condition(made: dict, kind: str) -> dict:
    return next(item for item in made["conditions"] if item["type"] == kind)


def test_new_pod() -> None:
    made = status.build(pod(), facts(), {})
    assert made["phase"] == "Pending"
    assert made["startTime"] == THEN
    assert made["observedGeneration"] == 3
    (shown,) = made["containerStatuses"]
    assert shown == {
        "name": "main",
        "state": {"waiting": {"reason": "ContainerCreating"}},
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "image": "busybox",
        "imageID": "",
        "started": False,
        "resources": {},
    }
    assert {item["type"]: item["status"] for item in made["conditions"]} == {
        "PodReadyToStartContainers": "False",
        "Initialized": "True",
        "Ready": "False",
        "ContainersReady": "False",
        "PodScheduled": "True",
    }
    assert condition(made, "Ready") == {
        "type": "Ready",
        "status": "False",
        "reason": "ContainersNotReady",
        "message": "containers with unready status: [main]",
        "lastTransitionTime": NOW,
        "observedGeneration": 3,
    }


def test_queued_pod_tells_why() -> None:
    made = status.build(pod(), facts(queued=("SlurmQueued", "Slurm job 7 waits in the queue: Priority")), {})
    shown = condition(made, "PodReadyToStartContainers")
    assert (shown["status"], shown["reason"], shown["message"]) == ("False", "SlurmQueued", "Slurm job 7 waits in the queue: Priority")


def test_container_that_cannot_get_its_image() -> None:
    two = ({"name": "main", "image": "x"}, {"name": "side", "image": "y"})
    made = status.build(pod(containers=two), facts(waiting=status.Waiting("ErrImagePull", "no such image", "side")), {})
    assert [item["state"]["waiting"] for item in made["containerStatuses"]] == [
        {"reason": "ContainerCreating"},
        {"reason": "ErrImagePull", "message": "no such image"},
    ]


def test_running() -> None:
    spec = {
        "name": "main",
        "image": "busybox",
        "resources": {"requests": {"cpu": "1"}},
        "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
    }
    user = {"linux": {"uid": 0, "gid": 0, "supplementalGroups": [0]}}
    known = facts(report=report(container(**RUNNING)), images={"main": "busybox@sha256:1"}, users={"main": user})
    made = status.build(pod(containers=(spec,)), known, {})
    assert made["phase"] == "Running"
    assert (made["hostIP"], made["hostIPs"], made["podIP"], made["podIPs"]) == (
        "10.0.0.1",
        [{"ip": "10.0.0.1"}],
        "10.0.0.1",
        [{"ip": "10.0.0.1"}],
    )
    (shown,) = made["containerStatuses"]
    assert (shown["ready"], shown["started"], shown["imageID"], shown["user"]) == (True, True, "busybox@sha256:1", user)
    assert shown["allocatedResources"] == {"cpu": "1"}
    assert shown["volumeMounts"] == [{"name": "v", "mountPath": "/v", "readOnly": True, "recursiveReadOnly": "Disabled"}]
    assert {item["type"]: item["status"] for item in made["conditions"]} == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "True",
        "ContainersReady": "True",
        "PodScheduled": "True",
    }


def test_transition_time_stays_while_the_status_does() -> None:
    first = status.build(pod(), facts(), {})
    before = {item["type"]: {**item, "lastTransitionTime": THEN} for item in first["conditions"]}
    made = status.build(pod(), facts(report=report(container(**RUNNING))), before)
    assert condition(made, "Ready")["lastTransitionTime"] == NOW
    assert condition(made, "Initialized")["lastTransitionTime"] == THEN


def test_init_containers_hold_the_phase() -> None:
    init = ({"name": "one", "image": "x"}, {"name": "two", "image": "x"})
    known = report(
        container(),
        init=(container("one", **ended(0)), container("two", **RUNNING)),
        initialized=False,
    )
    made = status.build(pod(init=init), facts(report=known), {})
    assert made["phase"] == "Pending"
    assert [item["ready"] for item in made["initContainerStatuses"]] == [True, False]
    assert made["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    shown = condition(made, "Initialized")
    assert (shown["reason"], shown["message"]) == ("ContainersNotInitialized", "containers with incomplete status: [two]")


def test_sidecar_counts_for_ready() -> None:
    init = ({"name": "side", "image": "x", "restartPolicy": "Always"},)
    waiting = container("side", state={"waiting": {"reason": "CrashLoopBackOff"}}, restartCount=1, lastState=ended(1)["state"])
    made = status.build(pod(init=init), facts(report=report(container(**RUNNING), init=(waiting,))), {})
    assert made["phase"] == "Running"
    assert condition(made, "ContainersReady")["message"] == "containers with unready status: [side]"
    assert condition(made, "Initialized")["status"] == "True"


def test_crash_loop_is_running() -> None:
    waiting = {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": ended(3)["state"],
        "restartCount": 2,
    }
    made = status.build(pod(), facts(report=report(container(**waiting))), {})
    assert made["phase"] == "Running"
    assert made["containerStatuses"][0]["restartCount"] == 2


def test_all_containers_ended_but_the_supervisor_is_not_done() -> None:
    assert status.build(pod(), facts(report=report(container(**ended(0)))), {})["phase"] == "Running"


@pytest.mark.parametrize(("code", "phase", "reason"), [(0, "Succeeded", "PodCompleted"), (7, "Failed", "PodFailed")])
def test_ended(code: int, phase: str, reason: str) -> None:
    final = report(container(**ended(code)), phase=phase)
    made = status.build(pod(), facts(report=final, ended=outcome.ended(None, final, None)), {})
    assert made["phase"] == phase
    assert made["containerStatuses"][0]["state"]["terminated"]["exitCode"] == code
    assert condition(made, "Ready")["reason"] == reason
    assert condition(made, "PodReadyToStartContainers")["status"] == "False"


def test_failed_init_container_leaves_the_others_waiting() -> None:
    init = ({"name": "one", "image": "x"},)
    final = report(container(), init=(container("one", **ended(1)),), phase="Failed", initialized=False)
    made = status.build(pod(init=init), facts(report=final, ended=outcome.ended(None, final, None)), {})
    assert made["phase"] == "Failed"
    assert made["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}


def test_refused_pod_shows_no_containers() -> None:
    made = status.build(pod(), facts(ended=status.Ended("Failed", "UnsupportedPodSpec", "why", never_ran=True)), {})
    assert (made["phase"], made["reason"], made["message"], made["containerStatuses"]) == ("Failed", "UnsupportedPodSpec", "why", None)


def test_readiness_gates() -> None:
    gated = pod(readinessGates=[{"conditionType": "example.org/lb"}])
    known = facts(report=report(container(**RUNNING)))
    shown = condition(status.build(gated, known, {}), "Ready")
    assert (shown["reason"], shown["message"]) == (
        "ReadinessGatesNotReady",
        'corresponding condition of pod readiness gate "example.org/lb" does not exist.',
    )
    assert condition(status.build(gated, known, {"example.org/lb": {"status": "True"}}), "Ready")["status"] == "True"


def test_patch_has_only_what_differs_and_leaves_conditions_of_others() -> None:
    made = status.build(pod(), facts(), {})
    current = {**made, "qosClass": "BestEffort", "conditions": [*made["conditions"], {"type": "example.org/lb", "status": "True"}]}
    current = {key: value for key, value in current.items() if value not in ("", None)}
    assert status.patch(made, current) is None
    running = status.build(pod(), facts(report=report(container(**RUNNING))), status.conditions(current))
    changes = status.patch(running, current)
    assert changes is not None
    assert sorted(changes) == ["conditions", "containerStatuses", "hostIP", "hostIPs", "phase", "podIP", "podIPs"]
    assert {item["type"] for item in changes["conditions"]} == {"PodReadyToStartContainers", "Ready", "ContainersReady"}
    ready = next(item for item in changes["conditions"] if item["type"] == "Ready")
    assert (ready["reason"], ready["message"]) == (None, None)  # named, so that the merge takes them away


def test_ephemeral_containers_are_refused_so_that_nobody_waits() -> None:
    made = status.build(pod(ephemeralContainers=[{"name": "debugger", "image": "busybox"}]), facts(report=report(container(**RUNNING))), {})
    assert made["phase"] == "Running"
    (shown,) = made["ephemeralContainerStatuses"]
    assert "spec.ephemeralContainers" in shown["state"]["terminated"]["message"]


# -- how it ended ------------------------------------------------------------------------------------------------------


def job(state: states.JobState, word: str = "") -> commands.Job:
    return commands.Job("7", state, word or state.name, "", "c1", "c1", 1.0, 2.0, 3.0, "default/a", "/x", "")


@pytest.mark.parametrize(
    ("state", "reason", "disruption"),
    [
        (states.JobState.NODE_FAIL, "NodeFail", "NodeFail"),
        (states.JobState.PREEMPTED, "Preempted", "PreemptionByScheduler"),
        (states.JobState.TIMEOUT, "DeadlineExceeded", None),
        (states.JobState.CANCELLED, "SlurmJobCancelled", None),
        (states.JobState.GONE, "SlurmJobGone", None),
        (states.JobState.FAILED, "SlurmJobFailed", None),
    ],
)
def test_job_ended_without_a_final_report(state: states.JobState, reason: str, disruption: str | None) -> None:
    last = report(container(**RUNNING))
    end = outcome.ended(job(state), last, None, "sandbox: no user namespaces\n")
    assert (end.phase, end.reason) == ("Failed", reason)
    made = status.build(pod(), facts(report=last, ended=end), {})
    end_of_container = made["containerStatuses"][0]["state"]["terminated"]
    assert (end_of_container["exitCode"], end_of_container["reason"], end_of_container["startedAt"]) == (
        137,
        "ContainerStatusUnknown",
        THEN,
    )
    kinds = {item["type"]: item for item in made["conditions"]}
    assert (kinds["DisruptionTarget"]["reason"] if "DisruptionTarget" in kinds else None) == disruption
    if state is states.JobState.FAILED:
        assert "no user namespaces" in end.message


def test_out_of_memory() -> None:
    final = report(container(**ended(137)), phase="Failed")
    assert outcome.needs_slurm(final)
    end = outcome.ended(job(states.JobState.OUT_OF_MEMORY), final, None)
    made = status.build(pod(), facts(report=final, ended=end), {})
    assert made["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
    assert made["reason"] == ""
    without = outcome.ended(job(states.JobState.OUT_OF_MEMORY), report(container(**RUNNING)), None)
    assert without.container_reason == "OOMKilled"


def test_sigterm_of_slurm_gets_slurms_reason() -> None:
    final = report(container(**ended(143)), phase="Failed", reason="Terminated", message="Slurm asked the job to end")
    assert outcome.needs_slurm(final)
    end = outcome.ended(job(states.JobState.PREEMPTED), final, None)
    assert (end.reason, end.disruption is not None) == ("Preempted", True)
    assert outcome.ended(None, final, None).reason == "Terminated"
    final["reason"] = "DeadlineExceeded"  # the supervisor knows better
    assert outcome.ended(job(states.JobState.PREEMPTED), final, None).reason == "DeadlineExceeded"


def test_succeeded_whatever_slurm_says() -> None:
    final = report(container(**ended(0)), phase="Succeeded")
    assert not outcome.needs_slurm(final)
    end = outcome.ended(job(states.JobState.CANCELLED), final, None)
    assert (end.phase, end.reason, end.disruption) == ("Succeeded", "", None)


def test_deleted_pod_is_named_by_its_containers() -> None:
    stop = outcome.Stop()
    final = report(container(**ended(0)), phase="Succeeded")
    assert outcome.ended(job(states.JobState.COMPLETED), final, stop).phase == "Succeeded"
    final = report(container(**ended(143)), phase="Failed", reason="Terminated", message="x")
    assert outcome.ended(job(states.JobState.CANCELLED), final, stop) == status.Ended("Failed")
    assert outcome.ended(job(states.JobState.CANCELLED), None, stop) == status.Ended("Failed")


def test_deadline_of_the_kubelet() -> None:
    stop = outcome.Stop("DeadlineExceeded", "too long")
    final = report(container(**ended(0)), phase="Succeeded")
    assert outcome.ended(None, final, stop) == status.Ended("Failed", "DeadlineExceeded", "too long")


def test_an_evicted_pod_says_so_in_its_conditions() -> None:
    text = 'Usage of EmptyDir volume "x" exceeds the limit "1Mi". '
    final = report(phase="Failed", reason="Evicted", message=text)
    for of_slurm in (None, job(states.JobState.FAILED)):
        made = status.build(pod(), facts(report=final, ended=outcome.ended(of_slurm, final, None)), {})
        assert (made["phase"], made["reason"], made["message"]) == ("Failed", "Evicted", text)
        condition = next(item for item in made["conditions"] if item["type"] == "DisruptionTarget")
        assert (condition["status"], condition["reason"], condition["message"]) == ("True", "TerminationByKubelet", text)
