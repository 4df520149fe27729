"""A Pod's worker through its life, in virtual time: what it does, in which order, and what it does not do twice."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from hpk import config, errors, files, paths, records
from hpk.kubelet import pod_workers, podplan, provider
from hpk.slurm import commands
from hpk.slurm.states import JobState
from tests.fakes import clock

UID = "0b2f9b0c-6d3a-4a52-9d5e-0c1c3f7a9a11"


def job(state: JobState, job_id: str = "7", reason: str = "None", **values: Any) -> commands.Job:
    nodes = "" if state is JobState.PENDING else "c1"
    word = values.pop("word", state.name)
    return commands.Job(job_id, state, word, reason, values.pop("nodes", nodes), nodes, 1.0, 2.0, 0.0, "default/a", "/x", f"hpk uid={UID}")


def report(phase: str = "Running", state: dict | None = None, *, seq: int = 1, **values: Any) -> dict:
    shown = {"name": "main", "state": state or {"running": {"startedAt": records.now()}}, "ready": True, "started": True, "restartCount": 0}
    base = {"uid": UID, "seq": seq, "jobID": "7", "phase": phase, "sandboxReady": True, "initialized": True, "hostIP": "10.0.0.1"}
    return {**base, "containerStatuses": [shown], "events": [], **values}


def ended(code: int) -> dict:
    return {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}


class World:
    """The Slurm, API server and supervisor around one worker. ``did`` is the story."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.did: list[str] = []
        self.paths = paths.Paths(str(folder))
        self.status: dict[str, Any] = {}
        self.phases: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.jobs: dict[str, commands.Job] = {}
        self.submit: Callable[[], str] = lambda: "7"
        self.preparations: list[Exception] = []
        self.prepare_seconds = 0.0
        self.supervisor: object | None = None
        self.slurm_away = False
        self.delete_errors: list[Exception] = []
        self.pod: dict[str, Any] = {
            "metadata": {"namespace": "default", "name": "a", "uid": UID, "generation": 1},
            "spec": {"containers": [{"name": "main", "image": "busybox"}], "terminationGracePeriodSeconds": 30},
            "status": {},
        }
        cfg = config.Config()
        self.kit = pod_workers.Kit(
            client=self,  # type: ignore[arg-type]
            config=cfg,
            paths=self.paths,
            recorder=self,  # type: ignore[arg-type]
            slurm=self,  # type: ignore[arg-type]
            provider=provider.SlurmProvider(config=cfg, slurm=Sbatch(self), generator=self),  # type: ignore[arg-type]
            pleg=self,  # type: ignore[arg-type]
            statuses=self,  # type: ignore[arg-type]
            channels=self,  # type: ignore[arg-type]
            prepare=self.prepare,
            forget=lambda uid: self.did.append("forget"),
            first_look=self.first_look,
        )
        self.workers = pod_workers.PodWorkers(self.kit)
        self.dir = self.paths.pod("default", "a", UID)
        files.private_dir(self.dir.root)

    # Preparer

    async def prepare(self, pod: dict) -> podplan.PodPlan:
        await asyncio.sleep(self.prepare_seconds)
        if self.preparations:
            raise self.preparations.pop(0)
        self.did.append("prepare")
        container = podplan.ContainerPlan("main", "busybox", "busybox@sha256:1", "/x.sif", ("true",))
        slurm_job = podplan.SlurmJob("default/a", f"hpk uid={UID}")
        return podplan.PodPlan(UID, "default", "a", "hpk", self.dir.root, slurm_job, (container,))

    # Slurm and Pleg

    async def first_look(self) -> dict[str, list[commands.Job]]:
        return {uid: [found] for uid, found in self.jobs.items()}

    def track(self, uid: str, job_id: str, *, silent: bool = True) -> None:
        if f"track {job_id}" not in self.did:
            self.did.append(f"track {job_id}")

    def untrack(self, uid: str) -> None:
        pass

    def poke(self) -> None:
        pass

    async def look(self, uid: str) -> commands.Job | None:
        if self.slurm_away:
            raise errors.SlurmUnknown("no answer")
        self.did.append("look")
        return self.jobs.get(uid)

    async def cancel(self, job_id: str, *, signal: str | None = None, batch: bool = False) -> None:
        self.did.append(f"scancel {job_id}" + (f" {signal}" if signal else "") + (" batch" if batch else ""))

    async def test(self, script: str) -> None:
        raise commands.Refused("allocation failure: Requested node configuration is not available", permanent=True)

    async def cause(self, found: commands.Job, *, warning: float) -> commands.Job:
        return job(JobState.PREEMPTED)

    # channels

    def connected(self, uid: str) -> bool:
        return self.supervisor is not None

    def peer(self, uid: str) -> object | None:
        return self.supervisor

    def stop_pod(self, uid: str, grace: float, reason: str, message: str) -> bool:
        self.did.append(f"stop {grace:.0f} {reason}".strip())
        return True

    # statuses, recorder, client

    def set(self, pod: dict, wanted: dict) -> None:
        self.status = wanted
        if not self.phases or self.phases[-1] != wanted["phase"]:
            self.phases.append(wanted["phase"])

    def observe(self, pod: dict) -> None:
        pass

    def forget(self, uid: str) -> None:
        pass

    async def sent(self, uid: str) -> None:
        self.did.append("status sent")

    def event(self, pod: dict, kind: str, reason: str, message: str, *, field_path: str = "") -> None:
        self.events.append((reason, message))

    async def delete(self, path: str, body: dict) -> None:
        assert body == {"gracePeriodSeconds": 0, "preconditions": {"uid": UID}}
        if self.delete_errors:
            raise self.delete_errors.pop(0)
        self.did.append("delete")
        self.workers.update(self.pod, gone=True)

    # what a test does

    @property
    def worker(self) -> pod_workers.PodWorker:
        found = self.workers.get(UID)
        assert found is not None
        return found

    async def start(self, seconds: float = 1.0) -> None:
        self.workers.update(self.pod)
        await asyncio.sleep(seconds)

    async def change(self, *, seconds: float = 1.0, **metadata: Any) -> None:
        self.pod = {**self.pod, "metadata": {**self.pod["metadata"], **metadata}}
        self.workers.update(self.pod)
        await asyncio.sleep(seconds)

    async def report(self, value: dict, seconds: float = 1.0) -> None:
        files.write_json(self.dir.status, value)
        self.workers.on_report(UID, value)
        await asyncio.sleep(seconds)

    async def tell(self, found: commands.Job, seconds: float = 1.0) -> None:
        self.workers.on_job(UID, found)
        await asyncio.sleep(seconds)

    async def delete_pod(self, grace: int = 30, seconds: float = 1.0) -> None:
        await self.change(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=grace, seconds=seconds)

    def submission(self) -> dict:
        return files.read_json(self.dir.submission)


class Sbatch:
    def __init__(self, world: World) -> None:
        self._world = world

    async def submit(self, script: str) -> str:
        record = self._world.submission()
        assert record["state"] == "submitting"
        self._world.did.append("sbatch")
        return self._world.submit()


@pytest.fixture
def world(tmp_path: pathlib.Path) -> World:
    return World(tmp_path)


@clock.virtual
async def test_from_the_api_to_a_job_and_back(world: World) -> None:
    await world.start()
    assert world.did == ["prepare", "sbatch", "track 7"]
    assert world.submission()["state"] == "submitted"
    assert os.stat(world.dir.script).st_mode & 0o777 == 0o700
    assert json.loads(pathlib.Path(world.dir.plan).read_text())["uid"] == UID
    await world.tell(job(JobState.RUNNING))
    await world.report(report())
    assert world.status["phase"] == "Running"
    assert world.status["containerStatuses"][0]["imageID"] == "busybox@sha256:1"
    await world.report(report("Failed", ended(7), seq=2))
    await world.tell(job(JobState.FAILED))
    assert world.phases == ["Pending", "Running", "Failed"]
    assert world.status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
    await asyncio.sleep(3600)
    assert world.did == ["prepare", "sbatch", "track 7"]
    assert os.path.exists(world.dir.root)  # its logs
    await world.delete_pod()
    assert world.did[3:] == ["status sent", "delete", "forget"]
    assert not os.path.exists(world.dir.root)
    assert len(world.workers) == 0


@clock.virtual
async def test_preparation_is_tried_until_all_is_there(world: World) -> None:
    missing = errors.NotReady("CreateContainerConfigError", 'configmap "x" not found', container="main", event="Failed")
    world.preparations = [missing] * 3
    await world.start()
    assert world.status["containerStatuses"][0]["state"]["waiting"] == {
        "reason": "CreateContainerConfigError",
        "message": 'configmap "x" not found',
    }
    assert world.did == []
    await asyncio.sleep(10)
    assert world.did == ["prepare", "sbatch", "track 7"]
    assert world.status["containerStatuses"][0]["state"]["waiting"] == {"reason": "ContainerCreating"}


@clock.virtual
async def test_rejected(world: World) -> None:
    world.pod["spec"]["hostPID"] = True
    await world.start(3600)
    assert world.did == []
    assert world.phases == ["Pending", "Failed"] or world.phases == ["Failed"]
    assert "hostPID" in world.status["message"]
    assert world.status["containerStatuses"] is None
    assert [reason for reason, _ in world.events] == ["UnsupportedPodSpec"]


@clock.virtual
async def test_refusal_for_good(world: World) -> None:
    def refuse() -> str:
        raise commands.Refused("invalid partition specified: moon", permanent=True)

    world.submit = refuse
    await world.start(3600)
    assert world.did == ["prepare", "sbatch"]
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "SlurmRefused")
    assert world.status["message"] == "Slurm refused the job: invalid partition specified: moon"
    await world.delete_pod()
    assert len(world.workers) == 0


@clock.virtual
async def test_refusal_that_may_pass(world: World) -> None:
    answers: list[Any] = [commands.Refused("AssocMaxSubmitJobLimit", permanent=False)] * 4 + ["9"]

    def answer() -> str:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return str(found)

    world.submit = answer
    await world.start(1)
    assert world.status["phase"] == "Pending"
    shown = next(item for item in world.status["conditions"] if item["type"] == "PodReadyToStartContainers")
    assert "AssocMaxSubmitJobLimit" in shown["message"]
    await asyncio.sleep(60)
    assert world.submission() == {**world.submission(), "state": "submitted", "jobID": "9", "attempt": 5}


@clock.virtual
async def test_sbatch_without_an_answer_although_the_job_exists(world: World) -> None:
    def lost() -> str:
        world.jobs[UID] = job(JobState.PENDING, "12")
        world.slurm_away = True
        raise errors.SlurmUnknown("sbatch did not answer within 30 s")

    world.submit = lost
    await world.start(100)
    assert world.did == ["prepare", "sbatch"]  # it does not guess
    assert world.submission()["state"] == "submitting"
    world.slurm_away = False
    await asyncio.sleep(100)
    assert world.did == ["prepare", "sbatch", "look", "track 12"]
    assert world.submission()["jobID"] == "12"


@clock.virtual
async def test_sbatch_without_an_answer_and_without_a_job(world: World) -> None:
    answers: list[Any] = [errors.SlurmUnknown("Socket timed out"), "8"]

    def answer() -> str:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return str(found)

    world.submit = answer
    await world.start(30)
    # two looks with a pause: a request that a stopped controller has in its socket may become a job late
    assert world.did == ["prepare", "sbatch", "look", "look", "prepare", "sbatch", "track 8"]


@clock.virtual
async def test_job_that_appears_between_the_two_looks(world: World) -> None:
    def lost() -> str:
        asyncio.get_running_loop().call_later(2, world.jobs.__setitem__, UID, job(JobState.PENDING, "12"))
        raise errors.SlurmUnknown("Socket timed out")

    world.submit = lost
    await world.start(60)
    assert world.did == ["prepare", "sbatch", "look", "look", "track 12"]


@clock.virtual
async def test_kubelet_died_between_sbatch_and_its_record(world: World) -> None:
    files.write_json(world.dir.submission, {"uid": UID, "state": "submitting", "jobID": "", "attempt": 1})
    world.jobs[UID] = job(JobState.RUNNING, "33")
    await world.start()
    assert world.did == ["look", "track 33"]


@clock.virtual
async def test_damaged_record_is_a_doubt(world: World) -> None:
    pathlib.Path(world.dir.submission).write_text("{")
    world.jobs[UID] = job(JobState.RUNNING, "33")
    await world.start()
    assert world.did == ["look", "track 33"]


@clock.virtual
async def test_lost_folder_but_not_the_job(world: World) -> None:
    world.jobs[UID] = job(JobState.RUNNING, "33")
    await world.start()
    assert world.did == ["prepare", "track 33"]


@clock.virtual
async def test_adopts_after_a_restart(world: World) -> None:
    files.write_json(world.dir.submission, {"uid": UID, "state": "submitted", "jobID": "7", "attempt": 1})
    files.write_json(world.dir.status, report("Failed", ended(3), seq=5))
    await world.start()
    await world.tell(job(JobState.FAILED))
    assert world.did == ["track 7"]
    assert world.status["phase"] == "Failed"
    assert world.status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3


@clock.virtual
async def test_full_disk_submits_nothing_and_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write_json

    def full(path: str, value: Any, **how: Any) -> None:
        if path == world.dir.submission:
            raise OSError(28, "No space left on device", path)
        write(path, value, **how)

    monkeypatch.setattr(files, "write_json", full)
    await world.start(5)
    assert "sbatch" not in world.did
    assert world.status["phase"] == "Pending"
    assert any("No space left on device" in message for _, message in world.events)
    monkeypatch.setattr(files, "write_json", write)
    await asyncio.sleep(30)
    assert world.did.count("sbatch") == 1


@clock.virtual
async def test_deletion_asks_the_supervisor_first(world: World) -> None:
    world.supervisor = object()
    await world.start()
    await world.tell(job(JobState.RUNNING))
    await world.report(report())
    await world.delete_pod(grace=5)
    assert world.did[3:] == ["stop 5"]
    assert ("Killing", "Stopping container main") in world.events
    await world.report(report("Succeeded", ended(0), seq=2))
    assert "delete" not in world.did  # the job is not over
    await world.tell(job(JobState.COMPLETED))
    assert world.did[4:] == ["status sent", "delete", "forget"]
    assert world.status["phase"] == "Succeeded"


@clock.virtual
async def test_deletion_of_one_that_does_not_end(world: World) -> None:
    world.supervisor = object()
    await world.start()
    await world.tell(job(JobState.RUNNING))
    await world.report(report())
    await world.delete_pod(grace=5, seconds=14)
    assert world.did[3:] == ["stop 5"]
    await asyncio.sleep(2)
    assert world.did[3:] == ["stop 5", "scancel 7"]
    await asyncio.sleep(11)
    assert world.did[3:] == ["stop 5", "scancel 7", "scancel 7"]
    await world.tell(job(JobState.CANCELLED), seconds=20)
    assert world.status["phase"] == "Failed"
    assert world.did[-2:] == ["delete", "forget"]


@clock.virtual
async def test_deletion_without_a_channel(world: World) -> None:
    await world.start()
    await world.tell(job(JobState.RUNNING))
    await world.report(report())
    await world.delete_pod(grace=5, seconds=4)
    assert world.did[3:] == ["scancel 7 TERM batch"]


@clock.virtual
async def test_new_channel_and_less_time_are_told_again(world: World) -> None:
    world.supervisor = object()
    await world.start()
    await world.tell(job(JobState.RUNNING))
    await world.report(report())
    await world.delete_pod(grace=60, seconds=10)
    world.supervisor = object()
    world.workers.on_channel(UID)
    await asyncio.sleep(1)
    assert world.did[3:] == ["stop 60", "stop 50"]
    await world.delete_pod(grace=2)
    assert world.did[3:] == ["stop 60", "stop 50", "stop 2"]


@clock.virtual
async def test_deletion_while_queued(world: World) -> None:
    await world.start()
    await world.tell(job(JobState.PENDING, reason="Resources"))
    await world.delete_pod()
    assert world.did[3:] == ["scancel 7"]
    await world.tell(job(JobState.CANCELLED, nodes=""), seconds=5)
    assert world.did[4:] == ["status sent", "delete", "forget"]
    assert world.status["phase"] == "Failed"


@clock.virtual
async def test_deletion_while_it_is_prepared(world: World) -> None:
    world.prepare_seconds = 500
    await world.start(5)
    await world.delete_pod()
    assert world.did == ["status sent", "delete", "forget"]


@clock.virtual
async def test_deletion_is_tried_again(world: World) -> None:
    world.delete_errors = [errors.APIError(0, "Unreachable", "away")] * 3
    world.prepare_seconds = 500
    await world.start()
    await world.delete_pod(seconds=30)
    assert world.did.count("delete") == 1


@clock.virtual
async def test_gone_by_force(world: World) -> None:
    world.supervisor = object()
    await world.start()
    await world.tell(job(JobState.RUNNING))
    await world.report(report())
    world.pod = {**world.pod, "metadata": {**world.pod["metadata"], "deletionGracePeriodSeconds": 0}}
    world.workers.update(world.pod, gone=True)
    await asyncio.sleep(1)
    assert world.did[3:] == ["stop 1"]
    await world.tell(job(JobState.COMPLETED), seconds=20)
    assert world.did[4:] == ["forget"]


@clock.virtual
async def test_reason_of_the_queue_is_told_once(world: World) -> None:
    await world.start()
    await world.tell(job(JobState.PENDING, reason="Resources"), seconds=0.1)
    assert "Resources" not in str(world.status)  # most jobs start at once
    for _ in range(20):
        await world.tell(job(JobState.PENDING, reason="Priority"))
    shown = next(item for item in world.status["conditions"] if item["type"] == "PodReadyToStartContainers")
    assert shown["reason"] == "SlurmQueued"
    assert shown["message"].startswith("Slurm job 7 waits in the queue: Priority; expected start 1970-01-01T00:00:02Z")
    await world.tell(job(JobState.PENDING, reason="JobHeldUser"))
    told = [message for reason, message in world.events if reason == "SlurmQueued"]
    assert len(told) == 2
    await world.report(report())
    shown = next(item for item in world.status["conditions"] if item["type"] == "PodReadyToStartContainers")
    assert (shown["status"], "reason" in shown) == ("True", False)


@clock.virtual
async def test_too_large_for_any_node(world: World) -> None:
    await world.start()
    await world.tell(job(JobState.PENDING, reason="PartitionConfig"))
    assert world.did[3:] == ["scancel 7"]
    assert world.status["phase"] == "Failed"
    assert "Requested node configuration is not available" in world.status["message"]
    assert "more than any node has" in world.status["message"]


@clock.virtual
async def test_deadline_while_queued(world: World) -> None:
    world.pod["spec"]["activeDeadlineSeconds"] = 60
    world.pod["status"] = {"startTime": "2020-01-01T00:00:00Z"}
    await world.start()
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "DeadlineExceeded")
    assert "sbatch" not in world.did


@clock.virtual
async def test_end_of_the_job_waits_for_the_report_on_disk(world: World) -> None:
    await world.start()
    await world.report(report())
    await world.tell(job(JobState.FAILED), seconds=3)
    assert world.status["phase"] == "Running"
    files.write_json(world.dir.status, report("Failed", ended(5), seq=9))
    await asyncio.sleep(3)
    assert world.status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 5


@clock.virtual
async def test_end_of_the_job_without_a_report(world: World) -> None:
    await world.start()
    pathlib.Path(world.dir.output).write_text("hpk: neither apptainer nor singularity is on PATH of c1\n")
    await world.tell(job(JobState.FAILED), seconds=60)
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "SlurmJobFailed")
    assert "neither apptainer nor singularity" in world.status["message"]


@clock.virtual
async def test_killed_by_slurm_waits_for_slurms_word(world: World) -> None:
    await world.start()
    await world.report(report())
    await world.report(report("Failed", ended(143), seq=2, reason="Terminated"))
    assert world.status["phase"] == "Running"
    await world.tell(job(JobState.FAILED))
    assert world.status["reason"] == "Preempted"
    assert any(item["type"] == "DisruptionTarget" for item in world.status["conditions"])


@clock.virtual
async def test_slurm_forgot_a_job_that_still_speaks(world: World) -> None:
    world.supervisor = object()
    await world.start()
    await world.report(report())
    await world.tell(job(JobState.GONE), seconds=60)
    assert world.status["phase"] == "Running"
    world.supervisor = None
    world.workers.on_channel(UID)
    await asyncio.sleep(60)
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "SlurmJobGone")


@clock.virtual
async def test_events_of_reports_are_recorded_once(world: World) -> None:
    event = {"seq": 1, "time": records.now(), "type": "Normal", "reason": "Started", "message": "Container started", "container": "main"}
    await world.start()
    await world.report(report(events=[event]))
    await world.report(report(seq=2, events=[event, {**event, "seq": 2, "reason": "Killing"}]))
    assert [reason for reason, _ in world.events] == ["SlurmSubmitted", "Started", "Killing"]


@clock.virtual
async def test_older_report_does_not_win(world: World) -> None:
    await world.start()
    await world.report(report("Failed", ended(1), seq=9))
    world.workers.on_report(UID, report(seq=8))
    await world.tell(job(JobState.FAILED))
    assert world.status["phase"] == "Failed"


@clock.virtual
async def test_ended_pod_is_not_started_again(world: World) -> None:
    world.pod["status"] = {"phase": "Succeeded"}
    await world.start(60)
    assert world.did == []
    await world.delete_pod()
    assert world.did == ["status sent", "delete", "forget"]


RUNNING_IN_API = {
    "phase": "Running",
    "hostIP": "10.0.0.1",
    "conditions": [{"type": kind, "status": "True"} for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady")],
    "containerStatuses": [
        {
            "name": "main",
            "containerID": f"hpk://{UID}/main/2",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            "ready": True,
            "started": True,
            "restartCount": 2,
        }
    ],
}


@clock.virtual
async def test_a_running_pod_whose_status_file_is_lost_goes_on_to_be_shown_as_running(world: World) -> None:
    world.pod["status"] = RUNNING_IN_API
    files.write_json(world.dir.submission, {"uid": UID, "state": "submitted", "jobID": "7", "attempt": 1})
    await world.start()
    await world.tell(job(JobState.RUNNING))
    assert world.phases == ["Running"]
    assert world.status["containerStatuses"][0]["restartCount"] == 2
    assert world.status["containerStatuses"][0]["ready"]
    assert "sbatch" not in world.did
    await world.report(report("Failed", ended(7)), seconds=10)
    assert world.phases == ["Running", "Failed"]


@clock.virtual
async def test_a_running_pod_whose_folder_is_lost_is_found_in_slurm(world: World) -> None:
    world.pod["status"] = RUNNING_IN_API
    world.jobs[UID] = job(JobState.RUNNING)
    await world.start(60)
    assert world.phases == ["Running"]
    assert world.submission()["jobID"] == "7"
    assert "sbatch" not in world.did


@clock.virtual
async def test_a_pod_that_ran_is_not_run_again_although_nothing_is_left_of_it(world: World) -> None:
    world.pod["status"] = RUNNING_IN_API
    await world.start(60)
    assert "sbatch" not in world.did
    assert world.status["phase"] == "Failed"
    assert world.status["reason"] == "SlurmJobGone"


@clock.virtual
async def test_the_last_words_in_the_jobs_output_make_up_for_a_lost_status_file(world: World) -> None:
    await world.start()
    await world.tell(job(JobState.RUNNING))
    last = json.dumps(report("Failed", ended(42), seq=9))
    pathlib.Path(world.dir.output).write_text(f"channel: broken\n{records.LAST_WORDS}{last}\n")
    await world.tell(job(JobState.FAILED), seconds=20)
    assert world.status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 42


@clock.virtual
async def test_a_job_that_completed_without_any_report_succeeded(world: World) -> None:
    await world.start()
    await world.report(report())
    os.unlink(world.dir.status)
    await world.tell(job(JobState.COMPLETED), seconds=30)
    assert world.status["phase"] == "Succeeded"
    assert world.status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0


@pytest.mark.parametrize("lingers", [False, True])
@clock.virtual
async def test_old_pods_are_not_followed_after_a_restart_unless_their_job_lingers(world: World, lingers: bool) -> None:
    world.pod["status"] = {"phase": "Succeeded"}
    files.write_json(world.dir.submission, {"uid": UID, "state": "submitted", "jobID": "7", "attempt": 1})
    files.write_json(world.dir.status, report("Succeeded", ended(0), seq=5))
    if lingers:
        world.jobs[UID] = job(JobState.RUNNING)
    await world.start(100)
    assert world.did == (["track 7", "scancel 7", "scancel 7", "scancel 7"] if lingers else [])
