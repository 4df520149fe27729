"""What the Machine decides, event by event, in virtual time. Rules: the kubelet's (see hpk/pod/machine.py)."""

from __future__ import annotations

from typing import Any

import pytest

from hpk.pod import machine, report


class Pod:
    """A Machine with a clock; remembers what it asked for."""

    def __init__(self, *main: dict[str, Any], init: tuple[dict[str, Any], ...] = (), **plan: Any) -> None:
        self.now = 1000.0
        self.machine = machine.Machine(
            {
                "uid": "u",
                "namespace": "default",
                "name": "web",
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "containers": list(main),
                "initContainers": list(init),
                **plan,
            },
            self.now,
            self.now,
        )

    def at(self) -> machine.Machine:
        return self.machine.at(self.now, self.now)

    def begin(self, deadline: float | None = None) -> list[tuple[Any, ...]]:
        self.at().begin(deadline)
        return self.actions()

    def actions(self) -> list[tuple[Any, ...]]:
        return [action for action in self.machine.take_actions() if action[0] not in ("probe", "unprobe")]

    def started(self, *names: str) -> list[tuple[Any, ...]]:
        for name in names:
            self.at().program_started(name)
        return self.actions()

    def exited(self, name: str, code: int = 0, reason: str = "") -> list[tuple[Any, ...]]:
        self.at().exited(name, code, reason)
        return self.actions()

    def stop(self, grace: float | None = None, **kwargs: Any) -> list[tuple[Any, ...]]:
        self.at().stop(grace, **kwargs)
        return self.actions()

    def pass_time(self, seconds: float) -> list[tuple[Any, ...]]:
        """Let time pass as the supervisor does: tick at each time that the Machine named."""
        end, done = self.now + seconds, []
        while True:
            when = self.machine.next_time()
            if when is None or when > end:
                break
            self.now = max(self.now, when)
            self.at().tick()
            done += self.actions()
        self.now = end
        return done

    def state(self, name: str) -> dict[str, Any]:
        return self.status(name)["state"]

    def status(self, name: str) -> dict[str, Any]:
        value = report.report(self.machine, {}, 1)
        return next(status for status in value["initContainerStatuses"] + value["containerStatuses"] if status["name"] == name)

    def events(self) -> list[tuple[str, str]]:
        return [(event["reason"], event["container"]) for event in self.machine.events]


def c(name: str, **spec: Any) -> dict[str, Any]:
    return {"name": name, **spec}


HOOK = {"exec": {"command": ["x"]}}


# -- order ----------------------------------------------------------------------------------------------------------------


def test_main_containers_start_together() -> None:
    pod = Pod(c("a"), c("b"))
    assert pod.begin() == [("start", "a"), ("start", "b")]
    assert pod.machine.initialized


def test_init_containers_one_by_one() -> None:
    pod = Pod(c("main"), init=(c("one"), c("two")))
    assert pod.begin() == [("start", "one")]
    assert pod.started("one") == []
    assert pod.exited("one") == [("start", "two")]
    assert not pod.machine.initialized
    assert pod.state("main") == {"waiting": {"reason": "PodInitializing"}}
    pod.started("two")
    assert pod.exited("two") == [("start", "main")]
    assert pod.machine.initialized
    assert pod.state("main") == {"waiting": {"reason": "ContainerCreating"}}


def test_init_container_of_an_always_pod_restarts_only_on_failure() -> None:
    pod = Pod(c("main"), init=(c("init"),))
    pod.begin()
    pod.started("init")
    assert pod.exited("init", 1) == [("start", "init")]
    pod.started("init")
    assert pod.exited("init", 1) == []
    assert pod.state("init")["waiting"]["reason"] == "CrashLoopBackOff"
    assert pod.pass_time(10) == [("start", "init")]
    assert pod.exited("init", 0) == [("start", "main")]


def test_failed_init_container_of_a_never_pod_fails_it() -> None:
    pod = Pod(c("main"), init=(c("init"),), restartPolicy="Never")
    pod.begin()
    assert pod.exited("init", 1) == [("done",)]
    assert pod.machine.phase == "Failed"
    assert pod.state("main") == {"waiting": {"reason": "PodInitializing"}}


def test_sidecar_must_have_started_before_the_next_one() -> None:
    pod = Pod(c("main"), init=(c("side", restartPolicy="Always", startupProbe=HOOK), c("init")))
    assert pod.begin() == [("start", "side")]
    assert pod.started("side") == []
    assert pod.status("side")["started"] is False
    pod.at().probe_result("side", "startup", True)
    assert pod.actions() == [("start", "init")]


def test_sidecar_restarts_while_the_others_run_and_does_not_decide_the_phase() -> None:
    pod = Pod(c("main"), init=(c("side", restartPolicy="Always"),), restartPolicy="Never")
    pod.begin()
    assert pod.started("side") == [("start", "main")]
    pod.started("main")
    assert pod.exited("side", 1) == [("start", "side")]
    pod.started("side")
    assert pod.exited("main", 0) == [("signal", "side", "SIGTERM")]
    assert pod.exited("side", 143) == [("done",)]
    assert pod.machine.phase == "Succeeded"


def test_post_start_holds_back_the_next_container() -> None:
    pod = Pod(c("a", lifecycle={"postStart": HOOK}), c("b"))
    assert pod.begin() == [("start", "a")]
    assert pod.started("a") == [("post_start", "a")]
    assert pod.state("a") == {"waiting": {"reason": "ContainerCreating"}}
    pod.at().post_start_done("a", True)
    assert pod.actions() == [("start", "b")]
    assert "running" in pod.state("a")


# -- restarts -------------------------------------------------------------------------------------------------------------


def test_back_off_is_immediate_then_doubles_from_10_seconds_to_5_minutes() -> None:
    pod = Pod(c("a"))
    pod.begin()
    waits = []
    for _ in range(8):
        pod.started("a")
        begun = pod.now
        if pod.exited("a", 1) != [("start", "a")]:
            assert pod.pass_time(1000) == [("start", "a")]
            when = next(event["time"] for event in reversed(pod.machine.events) if event["reason"] == "Created")
            waits.append(when - begun)
            pod.now = when
        else:
            waits.append(0)
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    assert pod.status("a")["restartCount"] == 8


def test_back_off_begins_anew_after_ten_minutes_of_running() -> None:
    pod = Pod(c("a"))
    pod.begin()
    for _ in range(3):
        pod.started("a")
        pod.exited("a", 1)
        pod.pass_time(60)
    pod.now += 601
    assert pod.exited("a", 1) == [("start", "a")]


def test_waiting_shows_the_last_end() -> None:
    pod = Pod(c("a"))
    pod.begin()
    pod.started("a")
    pod.exited("a", 1)
    pod.started("a")
    pod.exited("a", 2)
    status = pod.status("a")
    assert status["state"]["waiting"]["message"] == "back-off 10s restarting failed container=a pod=web_default(u)"
    assert status["lastState"]["terminated"]["exitCode"] == 2
    assert status["containerID"] == "hpk://u/a/1"
    assert ("BackOff", "a") in pod.events()


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 0, False), ("Never", 1, False)],
)
def test_restart_policy(policy: str, code: int, again: bool) -> None:
    pod = Pod(c("a"), restartPolicy=policy)
    pod.begin()
    pod.started("a")
    assert pod.exited("a", code) == ([("start", "a")] if again else [("done",)])
    if not again:
        assert pod.machine.phase == ("Succeeded" if code == 0 else "Failed")


def test_pod_goes_on_until_all_containers_are_over() -> None:
    pod = Pod(c("a"), c("b"), restartPolicy="OnFailure")
    pod.begin()
    pod.started("a", "b")
    assert pod.exited("a", 0) == []
    assert pod.machine.phase == "Running"
    assert pod.exited("b", 1) == [("start", "b")]
    pod.started("b")
    assert pod.exited("b", 0) == [("done",)]
    assert pod.machine.phase == "Succeeded"


def test_start_error_counts_as_a_failure_and_is_shown() -> None:
    pod = Pod(c("a"), restartPolicy="Never")
    pod.begin()
    pod.at().exited("a", 128, "StartError", 'exec: "x": not found')
    assert pod.actions() == [("done",)]
    terminated = pod.state("a")["terminated"]
    assert (terminated["reason"], terminated["exitCode"], terminated["message"]) == ("StartError", 128, 'exec: "x": not found')
    assert ("Started", "a") not in pod.events()
    assert ("Failed", "a") in pod.events()


def test_program_that_ended_before_it_was_seen_has_started_nevertheless() -> None:
    pod = Pod(c("a"), restartPolicy="Never")
    pod.begin()
    pod.exited("a", 0)
    assert pod.events() == [("Created", "a"), ("Started", "a")]


# -- stopping -------------------------------------------------------------------------------------------------------------


def test_stop_signals_then_kills_after_the_grace_period() -> None:
    pod = Pod(c("a", stopSignal="SIGQUIT"))
    pod.begin()
    pod.started("a")
    assert pod.stop(7) == [("signal", "a", "SIGQUIT")]
    assert pod.pass_time(6.9) == []
    assert pod.pass_time(0.2) == [("kill", "a")]
    assert pod.exited("a", 137) == [("done",)]
    assert pod.machine.phase == "Failed"


def test_stop_without_grace_still_gives_two_seconds() -> None:
    pod = Pod(c("a"))
    pod.begin()
    pod.started("a")
    assert pod.stop(0) == [("signal", "a", "SIGTERM")]
    assert pod.pass_time(1.9) == []
    assert pod.pass_time(0.2) == [("kill", "a")]


def test_second_stop_shortens_but_never_lengthens() -> None:
    pod = Pod(c("a"))
    pod.begin()
    pod.started("a")
    pod.stop(100)
    assert pod.stop(200) == []
    pod.stop(5)
    assert pod.pass_time(5.1) == [("kill", "a")]


def test_phase_of_a_stopped_pod_follows_the_exit_codes_unless_it_was_failed() -> None:
    for failed, phase in ((False, "Succeeded"), (True, "Failed")):
        pod = Pod(c("a"))
        pod.begin()
        pod.started("a")
        pod.stop(failed=failed, reason="Evicted" if failed else "")
        pod.exited("a", 0)
        assert pod.machine.phase == phase


def test_nothing_restarts_once_the_pod_stops() -> None:
    pod = Pod(c("a"), c("b"))
    pod.begin()
    pod.started("a", "b")
    pod.exited("b", 1)
    pod.started("b")
    pod.exited("b", 1)  # now in back-off
    pod.stop()
    assert pod.exited("a", 0) == [("done",)]
    assert pod.state("b")["terminated"]["exitCode"] == 1
    assert pod.pass_time(100) == []


def test_pre_stop_runs_first_and_its_time_counts() -> None:
    pod = Pod(c("a", lifecycle={"preStop": HOOK}))
    pod.begin()
    pod.started("a")
    assert pod.stop(10) == [("pre_stop", "a", 10)]
    pod.now += 4
    pod.at().pre_stop_done("a", True)
    assert pod.actions() == [("signal", "a", "SIGTERM")]
    assert pod.pass_time(5.9) == []
    assert pod.pass_time(0.2) == [("kill", "a")]


def test_pre_stop_that_hangs_leaves_two_seconds() -> None:
    pod = Pod(c("a", lifecycle={"preStop": HOOK}))
    pod.begin()
    pod.started("a")
    pod.stop(10)
    assert pod.pass_time(10) == [("signal", "a", "SIGTERM")]
    assert pod.pass_time(2) == [("kill", "a")]


def test_sidecars_stop_after_the_others_last_one_first() -> None:
    pod = Pod(c("main"), init=(c("one", restartPolicy="Always"), c("two", restartPolicy="Always")))
    pod.begin()
    pod.started("one")
    pod.started("two")
    pod.started("main")
    assert pod.stop(30) == [("signal", "main", "SIGTERM")]
    assert pod.exited("main", 0) == [("signal", "two", "SIGTERM")]
    assert pod.exited("two", 0) == [("signal", "one", "SIGTERM")]
    assert pod.exited("one", 0) == [("done",)]


def test_sidecar_does_not_wait_longer_than_the_grace_period() -> None:
    pod = Pod(c("main"), init=(c("side", restartPolicy="Always"),))
    pod.begin()
    pod.started("side")
    pod.started("main")
    pod.stop(5)
    assert sorted(pod.pass_time(5)) == [("kill", "main"), ("signal", "side", "SIGTERM")]
    assert pod.pass_time(2) == [("kill", "side")]


def test_stop_before_anything_runs_is_over_at_once() -> None:
    pod = Pod(c("a"))
    assert pod.stop(reason="Evicted", message="m", failed=True) == [("done",)]
    assert (pod.machine.phase, pod.machine.reason) == ("Failed", "Evicted")


def test_stop_while_starting_still_ends_the_container() -> None:
    pod = Pod(c("a"))
    pod.begin()
    assert pod.stop(3) == [("signal", "a", "SIGTERM")]
    assert pod.started("a") == []  # it began in the same moment: no hooks, no second signal
    assert pod.pass_time(3) == [("kill", "a")]
    assert pod.exited("a", 137) == [("done",)]


def test_active_deadline() -> None:
    pod = Pod(c("a"))
    pod.begin(deadline=1060.0)
    pod.started("a")
    assert pod.pass_time(60) == [("signal", "a", "SIGTERM")]
    assert pod.exited("a", 0) == [("done",)]
    assert (pod.machine.phase, pod.machine.reason) == ("Failed", "DeadlineExceeded")


def test_containers_that_never_ran_are_told_apart_at_the_end() -> None:
    pod = Pod(c("a", lifecycle={"postStart": HOOK}), c("b"))
    pod.begin()
    pod.started("a")
    pod.stop()
    pod.exited("a", 0)
    assert pod.state("b")["terminated"]["reason"] == "ContainerStatusUnknown"
    assert pod.machine.phase == "Failed"


# -- hooks and probes -----------------------------------------------------------------------------------------------------


def test_failing_post_start_kills_and_policy_decides() -> None:
    pod = Pod(c("a", lifecycle={"postStart": HOOK}))
    pod.begin()
    pod.started("a")
    pod.at().post_start_done("a", False)
    assert pod.actions() == [("signal", "a", "SIGTERM")]
    assert pod.exited("a", 143) == [("start", "a")]
    assert ("FailedPostStartHook", "a") in pod.events()


def test_readiness_follows_the_probe_and_starts_false() -> None:
    pod = Pod(c("a", readinessProbe=HOOK), c("b"))
    pod.begin()
    pod.started("a", "b")
    assert (pod.status("a")["ready"], pod.status("b")["ready"]) == (False, True)
    pod.at().probe_result("a", "readiness", True)
    assert pod.status("a")["ready"] is True
    pod.at().probe_result("a", "readiness", False)
    assert pod.status("a")["ready"] is False


def test_failed_liveness_uses_the_probes_own_grace_period() -> None:
    pod = Pod(c("a", livenessProbe={**HOOK, "terminationGracePeriodSeconds": 3}))
    pod.begin()
    pod.started("a")
    pod.at().probe_result("a", "liveness", False)
    assert pod.actions() == [("signal", "a", "SIGTERM")]
    assert pod.pass_time(3) == [("kill", "a")]
    assert pod.exited("a", 137) == [("start", "a")]
    assert pod.machine.phase == "Running"


# -- the report -----------------------------------------------------------------------------------------------------------


def test_termination_messages_together_stay_below_12_kib() -> None:
    pod = Pod(*(c(f"c{i}") for i in range(4)), restartPolicy="Never")
    pod.begin()
    for i in range(4):
        pod.at().exited(f"c{i}", 1, "", "ä" * 2048)
    total = sum(len(pod.state(f"c{i}")["terminated"]["message"].encode()) for i in range(4))
    assert total <= 12 * 1024


def test_reason_is_told_at_the_end_only() -> None:
    pod = Pod(c("a"))
    pod.begin()
    pod.started("a")
    pod.stop(reason="Evicted", failed=True)
    assert report.report(pod.machine, {}, 1)["reason"] == ""
    pod.exited("a", 0)
    assert report.report(pod.machine, {}, 1)["reason"] == "Evicted"


def test_events_are_numbered_and_bounded() -> None:
    pod = Pod(c("a"))
    for _ in range(120):
        pod.at().event("Normal", "X", "m")
    sequence = [event["seq"] for event in pod.machine.events]
    assert sequence == list(range(71, 121))
