"""The channel between real supervisors and the kubelet's end, over real TLS: reports at once, stop, absence, wrong peers."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.component import kubelet_end, podjob

pytestmark = pytest.mark.component

REASON = podjob.missing()
LOOP = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"


def up(job: podjob.Job, name: str = "main") -> None:
    """Wait until LOOP has its trap: before, process 1 does not hear SIGTERM."""
    job.running(name)
    job.wait_for(lambda: "up" in job.log(name))


@pytest.fixture(scope="module")
def space() -> Iterator[podjob.Workspace]:
    if REASON:
        pytest.skip(REASON)
    with podjob.workspace() as made:
        yield made


@pytest.fixture
def kubelet(space: podjob.Workspace, request: pytest.FixtureRequest) -> Iterator[kubelet_end.KubeletEnd]:
    owner = podjob.NOBODY if os.getuid() == 0 else None
    end = kubelet_end.KubeletEnd(space.root / re.sub(r"\W", "", request.node.name), readable_by=owner)
    yield end
    end.close()


def test_hello_reports_and_the_last_one_before_the_end(space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd) -> None:
    kubelet.listen()
    job = space.job("report", [{"name": "main", "command": "sleep 0.5; exit 3"}], kubelet=kubelet.record)
    job.finish()
    assert kubelet.frames[0]["type"] == "hello"
    assert {key: kubelet.frames[0][key] for key in ("uid", "token", "version")} == {"uid": "uid-report", "token": "the token", "version": 1}
    kubelet.wait_for(lambda: kubelet.report.get("phase") == "Failed", 2)
    assert kubelet.report == job.report()
    sequence = [frame["report"]["seq"] for frame in kubelet.of("status")]
    assert sequence == sorted(set(sequence))


def test_change_is_told_at_once(space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd) -> None:
    kubelet.listen()
    with space.job("at-once", [{"name": "main", "command": "sleep 1; exit 0"}], kubelet=kubelet.record) as job:
        kubelet.wait_for(lambda: kubelet.report.get("phase") == "Succeeded")
        told = time.time()
        assert told - os.stat(job.pod_dir / "containers" / "main" / "0.log").st_mtime < 30
        assert told - os.stat(job.pod_dir / "status.json").st_mtime < 0.5
        job.wait(10)


def test_stop_frame_with_grace_and_reason(space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd) -> None:
    kubelet.listen()
    with space.job("evicted", [{"name": "main", "command": LOOP}], kubelet=kubelet.record) as job:
        up(job)
        kubelet.wait_for(lambda: kubelet.connections)
        kubelet.send({"type": "stop", "gracePeriodSeconds": 10, "reason": "Evicted", "message": "the node was low on disk"})
        job.wait(10)
        report = job.report()
        assert (report["phase"], report["reason"], report["message"]) == ("Failed", "Evicted", "the node was low on disk")


def test_deletion_leaves_the_phase_to_the_exit_codes_and_a_second_stop_shortens_the_time(
    space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd
) -> None:
    kubelet.listen()
    containers = [{"name": "polite", "command": LOOP}, {"name": "deaf", "command": ["sleep", "100"]}]
    with space.job("deleted", containers, kubelet=kubelet.record) as job:
        up(job, "polite")
        job.running("deaf")
        kubelet.wait_for(lambda: kubelet.connections)
        kubelet.send({"type": "stop", "gracePeriodSeconds": 60})
        job.wait_for(lambda: job.terminated("polite"))
        began = time.monotonic()
        kubelet.send({"type": "stop", "gracePeriodSeconds": 0})
        job.wait(10)
        assert time.monotonic() - began < 4
        assert job.terminated("polite")["exitCode"] == 0
        assert job.terminated("deaf")["exitCode"] == 137
        assert (job.report()["phase"], job.report()["reason"]) == ("Failed", "")


def test_kubelet_that_comes_later_goes_away_and_comes_back_elsewhere(space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd) -> None:
    with space.job("absent", [{"name": "main", "command": LOOP}], kubelet=kubelet.record) as job:
        up(job)
        kubelet.listen()
        kubelet.wait_for(lambda: kubelet.report)
        kubelet.close()
        kubelet.frames.clear()
        kubelet.listen()  # another port
        kubelet.wait_for(lambda: kubelet.report, 20)
        assert kubelet.frames[0]["type"] == "hello"
        assert kubelet.report["containerStatuses"][0]["restartCount"] == 0
        kubelet.send({"type": "stop", "gracePeriodSeconds": 5})
        job.wait(10)


def test_peer_with_another_name_gets_nothing(space: podjob.Workspace) -> None:
    owner = podjob.NOBODY if os.getuid() == 0 else None
    end = kubelet_end.KubeletEnd(space.root / "impostor", name="somebody-else", readable_by=owner).listen()
    with space.job("impostor-pod", [{"name": "main", "command": LOOP}], kubelet=end.record) as job:
        up(job)
        job.wait_for(lambda: "certificate" in job.output())
        assert not end.of("hello")
        job.signal()
        job.wait(10)
    end.close()


def test_refused_channel_is_not_dialled_again(space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd) -> None:
    kubelet.listen()
    with space.job("refused", [{"name": "main", "command": LOOP}], kubelet=kubelet.record) as job:
        kubelet.wait_for(lambda: kubelet.connections)
        kubelet.send({"type": "error", "message": "another job has this Pod"})
        job.wait_for(lambda: "refuses" in job.output())
        time.sleep(2)
        assert len(kubelet.of("hello")) == 1
        job.signal()
        job.wait(10)


def test_memory_and_wake_ups_with_the_channel_up(space: podjob.Workspace, kubelet: kubelet_end.KubeletEnd) -> None:
    kubelet.listen()
    containers = [{"name": name, "command": ["sleep", "100"]} for name in ("a", "b")]
    with space.job("idle", containers, kubelet=kubelet.record, termination_grace_period=1) as job:
        job.running("a")
        job.running("b")
        kubelet.wait_for(lambda: kubelet.report)
        time.sleep(1)
        status = pathlib.Path(f"/proc/{job.pid}/status")
        before, memory = _switches(status), int(re.search(r"VmRSS:\s+(\d+)", status.read_text()).group(1))  # type: ignore[union-attr]
        time.sleep(5)
        print(f"supervisor: {memory} kB resident, {_switches(status) - before} wake-ups in 5 s")
        assert _switches(status) == before
        assert memory < 24 * 1024
        job.signal(signal.SIGTERM)
        job.wait(10)


def _switches(status: pathlib.Path) -> int:
    return sum(int(number) for number in re.findall(r"ctxt_switches:\s+(\d+)", status.read_text()))
