"""One worker per Pod UID: brings the Pod to a Slurm job, follows it, ends it, tells the API what became of it.

States as in upstream's pod_workers.go:

    SYNC          admission, preparation, submission (provider.py), then the job is followed
    TERMINATING   the Pod is to end: its supervisor is asked, then Slurm
    TERMINATED    nothing of it runs any more; its last status is written; deleted from the API when that is wanted

A worker is a task that sleeps until something is told to it: a change of the Pod, a report of its supervisor, a change of its job
in Slurm. What it does next depends on the present facts only, so a worker that starts over (kubelet restart, a defect) adopts
what it finds on disk and in Slurm.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hpk import config as configuration
from hpk import errors, logs, paths, tasks
from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors
from hpk.kube import events
from hpk.kubelet import (
    admission,
    channel,
    faults,
    outcome,
    pleg,
    podplan,
    provider,
    queueing,
    script,
    status,
    status_manager,
    stopping,
    telling,
)
from hpk.slurm import commands, states

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Pauses between attempts in seconds: for what a Pod waits for (upstream: up to two minutes), and for Slurm's refusals.
FIRST_PAUSE = 1.0
MAX_PAUSE = 10.0
MAX_REFUSED_PAUSE = 120.0
#: Seconds for which the end of a job without a final report waits for one on disk: shared homes show files late.
REPORT_SECONDS = 10.0
#: The same where the node has failed: it will write nothing more.
DEAD_NODE_SECONDS = 1.0
#: Seconds for which a final report waits for Slurm's word where it matters (outcome.needs_slurm).
VERDICT_SECONDS = 5.0
#: Seconds after a final report in which the job must end by itself.
LINGER_SECONDS = 30.0
DEADLINE_MESSAGE = "Pod was active on the node longer than the specified deadline"


class WorkerState(enum.Enum):
    SYNC = "SyncPod"
    TERMINATING = "TerminatingPod"
    TERMINATED = "TerminatedPod"


@dataclasses.dataclass
class Kit:
    """What all workers share."""

    client: kube_client.Client
    config: configuration.Config
    paths: paths.Paths
    recorder: events.Recorder
    slurm: commands.Slurm
    provider: provider.SlurmProvider
    pleg: pleg.Pleg
    statuses: status_manager.StatusManager
    channels: channel.ChannelServer
    prepare: Callable[[Object], Awaitable[podplan.PodPlan]]
    forget: Callable[[str], None]
    first_look: Callable[[], Awaitable[dict[str, list[commands.Job]]]]
    """Jobs by Pod UID that Slurm had when this kubelet started; waits until Slurm has answered once."""
    events_since: float = 0.0
    """Events of reports that are older were recorded by an earlier kubelet. Seconds since the epoch."""
    recorded: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Set when Events of reports were recorded."""


class PodWorker:
    """``pod`` is the latest known object; ``gone``: the API has it no more."""

    def __init__(self, kit: Kit, pod: Object, *, gone: bool = False) -> None:
        self._kit = kit
        self.pod = pod
        self.gone = gone
        metadata = pod["metadata"]
        self.uid: str = metadata["uid"]
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.dir = kit.paths.pod(self.namespace, self.name, self.uid)
        self.state = WorkerState.SYNC
        self.submission = provider.Submission()
        self.job: commands.Job | None = None
        self.report: Object | None = None
        self.ended: status.Ended | None = None
        self._waiting = status.Waiting()
        self._queue = queueing.Queue()
        self._teller = telling.Teller(pod, self.dir, kit.recorder, kit.statuses, kit.events_since)
        self._wake = asyncio.Event()
        self._stop: stopping.Stopper | None = None
        self._job_end_seen = 0.0
        self._final_seen = 0.0
        self._long_over = False

    # -- what is told to it: never blocks ------------------------------------------------------------------------------

    def update(self, pod: Object) -> None:
        self.pod = pod
        self._wake.set()

    def removed(self, last: Object) -> None:
        self.pod = last
        self.gone = True
        self._wake.set()

    def on_report(self, report: Object) -> None:
        if self.report is not None and int(report.get("seq") or 0) < int(self.report.get("seq") or 0):
            return
        if self.report is None and report.get("jobID") and not self.submission.job_id:
            self.submission.job_id = str(report["jobID"])
        self.report = report
        if self._teller.reported(self.pod, report):
            self._kit.recorded.set()
        self._wake.set()

    def on_job(self, job: commands.Job) -> None:
        self.job = job
        self._wake.set()

    def on_channel(self) -> None:
        """The supervisor has connected, or the connection ended."""
        if self._has_job() and self.state is not WorkerState.TERMINATED:
            self._track()
        self._wake.set()

    # -- the life ------------------------------------------------------------------------------------------------------

    @property
    def deleted(self) -> bool:
        """Somebody deleted the Pod, gracefully or by force."""
        return self.gone or bool(self.pod["metadata"].get("deletionTimestamp"))

    async def run(self) -> None:
        """The Pod's whole life; returns when nothing of the Pod is left, here or in the API."""
        with logs.pod_context(self.namespace, self.name):
            pause = FIRST_PAUSE
            while True:
                try:
                    await self._life()
                    return
                except errors.HPKError as exc:
                    log.warning("%s; starting over", exc.message)
                except OSError as exc:
                    log.warning("%s; starting over", exc)
                except Exception:
                    log.exception("worker failed, starting over")
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_REFUSED_PAUSE)

    async def _life(self) -> None:
        await self._adopt()
        if self.state is not WorkerState.TERMINATED:
            if self.ended is None and not self._has_job():
                await self._begin()
            if self.ended is None:
                await self._follow()
            self._finished()
        await self._await_deletion()
        await self._remove()

    def _track(self) -> None:
        self._kit.pleg.track(self.uid, self.submission.job_id, silent=not self._kit.channels.connected(self.uid))

    def _has_job(self) -> bool:
        return bool(self.submission.job_id) and self.submission.state != "refused"

    async def _adopt(self) -> None:
        """Find out what is there: from an earlier kubelet, or from an earlier try of this worker."""
        self.submission = self._kit.provider.read(self.dir)
        report = self._kit.provider.report(self.dir)
        if report is not None:
            self.on_report(report)
        elif seen := status.reported(self.pod):
            await self._adopt_running(seen)
        if self.submission.in_doubt:
            self._show(status.Waiting())
            await self._settle_doubt()
        elif not self._has_job() and report is not None and report.get("jobID"):
            self.submission.job_id, self.submission.state = str(report["jobID"]), "submitted"
        over = (self.pod.get("status") or {}).get("phase") in status.TERMINAL
        self._long_over = over and outcome.final(self.report)
        if self._has_job() and not self._long_over:
            self._track()
        if over:
            if self._has_job() and not self._long_over:
                await self._quiet_end()
            self.state = WorkerState.TERMINATED

    async def _adopt_running(self, seen: Object) -> None:
        """The API shows a Pod that runs, of which no report is left: it is not to look like a new one, and never to be submitted again."""
        log.warning("the Pod runs, but its status file is lost")
        self.report = seen
        if not self._has_job():
            await self._settle_doubt()
        if not self._has_job():
            self.ended = outcome.ended(pleg.gone("of this Pod"), None, None)

    async def _settle_doubt(self) -> None:
        job_id = await self._kit.provider.locate(self.uid, self.dir)
        if job_id:
            log.info("found Slurm job %s", job_id)
            self.submission.state, self.submission.job_id = "submitted", job_id
        else:
            log.info("there is no Slurm job of this Pod: it may be submitted")
            self.submission.state, self.submission.job_id = "refused", ""
        await self._kit.provider.save(self.uid, self.dir, self.submission)
        if job_id:
            self._submitted()

    # -- until there is a job --------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Admission, preparation, submission, until there is a job or it is clear that there will be none."""
        pause = FIRST_PAUSE
        while True:
            if self.deleted:
                self.ended = status.Ended("Failed")
                return
            if self._deadline_left() <= 0:
                self.ended = status.Ended("Failed", "DeadlineExceeded", DEADLINE_MESSAGE)
                self._event("Normal", "DeadlineExceeded", DEADLINE_MESSAGE)
                return
            longest = MAX_PAUSE
            try:
                admission.check(self.pod, self._kit.config)
                self._show(self._waiting)
                if not await self._unless_deleted(self._prepare()):
                    continue
                self._waiting = status.Waiting()
                await self._submit()
                return
            except errors.Rejected as exc:
                self._event("Warning", exc.reason, exc.message)
                self.ended = status.Ended("Failed", exc.reason, exc.message, never_ran=True)
                return
            except errors.InvalidInput as exc:
                self._event("Warning", "InvalidSlurmFlags", exc.message)
                self.ended = status.Ended("Failed", "InvalidSlurmFlags", exc.message, never_ran=True)
                return
            except errors.NotReady as exc:
                self._waiting = status.Waiting(exc.reason, exc.message, exc.container)
                if exc.event:
                    self._event("Warning", exc.event, exc.message, container=exc.container or "")
            except commands.Refused as exc:
                if exc.permanent:
                    self._refuse(exc.message)
                    return
                longest = MAX_REFUSED_PAUSE
                self._queue.condition = ("SlurmRefused", f"Slurm does not take the job now: {exc.message}")
                self._event("Warning", "SlurmRefused", f"{self._queue.condition[1]}; trying again")
            except errors.SlurmUnknown as exc:
                self._queue.condition = ("SlurmUnreachable", f"Slurm does not answer: {exc.message}")
                self._event("Warning", "SlurmUnreachable", self._queue.condition[1])
                self._show(self._waiting)
                await self._settle_doubt()
                if self._has_job():
                    return
                continue
            except errors.MissingTool as exc:
                self._queue.condition = ("SlurmUnreachable", exc.message)
                self._event("Warning", "SlurmUnreachable", exc.message)
            except errors.APIError as exc:
                log.warning("%s", exc.message)
            except OSError as exc:
                message = f"cannot write the Pod's files: {exc.strerror or exc}: {exc.filename or self.dir.root}"
                self._event("Warning", "FailedCreatePodSandBox", message)
                self._queue.condition = ("StateDirectory", message)
            self._show(self._waiting)
            await self._pause(min(pause, self._deadline_left()))
            pause = min(pause * 2, longest)

    async def _prepare(self) -> None:
        pod_status = {**(self.pod.get("status") or {}), "startTime": self._teller.start_time}
        plan = await self._kit.prepare({**self.pod, "status": pod_status})  # limits itself what it does at the same time
        await asyncio.to_thread(self._kit.provider.write, self.dir, plan)
        self._teller.planned()

    async def _submit(self) -> None:
        known = pleg.accepted((await self._kit.first_look()).get(self.uid, []))
        if known is not None and not self.submission.attempt:  # the folder was lost, the job was not
            self.submission.state, self.submission.job_id = "submitted", known.job_id
            await self._kit.provider.save(self.uid, self.dir, self.submission)
            self._submitted()
            return
        await self._kit.provider.submit(self.uid, self.dir, self.submission)
        self._event("Normal", "SlurmSubmitted", f"Submitted Slurm job {self.submission.job_id}")
        self._submitted()

    def _submitted(self) -> None:
        self._queue.submitted(stopping.now())
        self._track()

    def _refuse(self, words: str) -> None:
        message = f"Slurm refused the job: {words}"
        if "node configuration is not available" in words or "can not be satisfied" in words:
            message += " (it asks for more than any node has)"
        self._event("Warning", "SlurmRefused", message)
        self.ended = status.Ended("Failed", "SlurmRefused", message, never_ran=True)

    async def _unless_deleted(self, work: Awaitable[None]) -> bool:
        """Do ``work``, which may be cancelled; False when the Pod was deleted, or ran out of time, meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._wake.clear()
                if self.deleted or self._deadline_left() <= 0:
                    return False
                woken = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED, timeout=min(self._deadline_left(), 3600))
                woken.cancel()
            await task
            return True
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not through a deletion or a change of the Pod's spec."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        generation = self.pod["metadata"].get("generation")
        while loop.time() < end and not self.deleted and self.pod["metadata"].get("generation") == generation:
            self._wake.clear()
            await self._doze(max(0.01, end - loop.time()))

    async def _doze(self, seconds: float) -> None:
        """Until something is told, at most ``seconds`` (infinite: no limit). Thousands do that at once: no task of its own each."""
        timer = None if seconds == float("inf") else asyncio.get_running_loop().call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _deadline_left(self) -> float:
        """Seconds until activeDeadlineSeconds have passed since the Pod's start; infinite without it."""
        seconds = self.pod["spec"].get("activeDeadlineSeconds")
        return float("inf") if seconds is None else stopping.epoch(self._teller.start_time) + float(seconds) - time.time()

    # -- while there is a job ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Until the Pod has ended: ``self.ended`` says how."""
        while True:
            self._wake.clear()
            wait = await self._step()
            if self.ended is not None:
                return
            await self._doze(max(wait, 0.01))

    async def _step(self) -> float:
        """Look at the facts, do what they ask for; the seconds after which to look again."""
        now = stopping.now()
        wait = float("inf")
        stop = self._stop.stop if self._stop else None
        job_ended = self.job is not None and self.job.state.ended
        if job_ended and self.job is not None and self.job.state is states.JobState.GONE and self._kit.channels.connected(self.uid):
            job_ended = False  # it speaks to us
        if outcome.final(self.report):
            assert self.report is not None
            self._final_seen = self._final_seen or now
            left = self._final_seen + VERDICT_SECONDS - now
            if job_ended or stop is not None or left <= 0 or not outcome.needs_slurm(self.report):
                if job_ended and stop is None:
                    await self._ask_cause()
                self.ended = outcome.ended(self.job if job_ended else None, self.report, stop)
                return 0
            self._kit.pleg.poke()
            return left
        if job_ended:
            self._job_end_seen = self._job_end_seen or now
            report = self._kit.provider.report(self.dir)
            if report is not None and outcome.final(report):
                self.on_report(report)
                return 0
            never_began = self.report is None and report is None and self.job is not None and self.job.nodes in ("", "None assigned")
            dead = self.job is not None and self.job.state is states.JobState.NODE_FAIL
            if now - self._job_end_seen >= (DEAD_NODE_SECONDS if dead else REPORT_SECONDS) or never_began:
                self.ended = outcome.ended(self.job, self.report, stop, self._kit.provider.output(self.dir))
                return 0
            return 1.0
        await self._check_queue()
        if self.ended is not None:
            return 0
        if self._must_stop():
            assert self._stop is not None
            wait = await self._stop.act(self)
        elif (left := self._deadline_left()) != float("inf"):
            wait = max(left, 0.0)
        self._show(self._waiting)
        return min(wait, self._queue.pause(self.job)) if self._is_queued() else wait

    async def _ask_cause(self) -> None:
        """A supervisor that was told to end did so: the job's state does not tell by whom and why, Slurm does."""
        assert self.report is not None
        assert self.job is not None
        if self.report.get("reason") == outcome.TERMINATED and self.job.state in (states.JobState.FAILED, states.JobState.COMPLETED):
            try:
                self.job = await self._kit.slurm.cause(self.job, warning=stopping.grace_of_spec(self.pod) + script.WARNING_MARGIN)
            except errors.SlurmUnknown as exc:
                log.info("%s", exc.message)

    def _is_queued(self) -> bool:
        return self.report is None and (self.job is None or self.job.state is states.JobState.PENDING)

    def _must_stop(self) -> bool:
        """Decide whether the Pod is to end, and how much time it has."""
        if self.deleted:
            grace = stopping.grace_of_deletion(self.pod)
            if self._stop is None or self._stop.stop.reason:
                self.state = WorkerState.TERMINATING
                self._teller.killing(self.pod, self.report)
                self._stop = stopping.Stopper(outcome.Stop(), grace)
            else:
                self._stop.shorten(grace)
        elif self._stop is None and self._deadline_left() <= (0 if self._is_queued() else -stopping.DEADLINE_SLACK):
            self.state = WorkerState.TERMINATING
            self._event("Normal", "DeadlineExceeded", DEADLINE_MESSAGE)
            self._stop = stopping.Stopper(outcome.Stop("DeadlineExceeded", DEADLINE_MESSAGE), stopping.grace_of_spec(self.pod))
        return self._stop is not None

    async def _check_queue(self) -> None:
        """Tell why Slurm lets the job wait."""
        if not self._is_queued():
            self._queue.condition = None
        elif self.job is not None:
            told = self._queue.look(self.job, stopping.now())
            if told is not None:
                self._event(told[0], "SlurmQueued", told[1])
                if told[2] and not self.deleted:
                    await self._test_size(self.job)

    async def _test_size(self, job: commands.Job) -> None:
        """Slurm took a job of which it now says that its nodes cannot be had: ask whether they ever could."""
        try:
            await self._kit.slurm.test(self.dir.script)
        except commands.Refused as exc:
            if exc.permanent:
                await self._kit.slurm.cancel(job.job_id)
                self._refuse(exc.message)
        except errors.SlurmUnknown as exc:
            log.info("%s", exc.message)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finished(self) -> None:
        """Nothing runs any more: the last status."""
        self.state = WorkerState.TERMINATED
        self._queue.condition = None
        if not self.gone:
            self._show(self._waiting)

    async def _quiet_end(self) -> None:
        """The API says that the Pod has ended: make sure of it, whatever became of the job."""
        while not outcome.final(self.report) and not (self.job is not None and self.job.state.ended):
            self._wake.clear()
            if self.job is not None:
                with contextlib.suppress(errors.SlurmUnknown):
                    await self._kit.slurm.cancel(self.submission.job_id)
                self._kit.pleg.poke()
            await self._doze(LINGER_SECONDS)

    async def _await_deletion(self) -> None:
        """Keep the folder (logs) while the Pod is in the API; when it is to be deleted and its last status is there, delete it."""
        await self._job_gone()
        while not self.gone:
            self._wake.clear()
            if self.deleted:
                await self._kit.statuses.sent(self.uid)
                if self.pod["metadata"].get("deletionGracePeriodSeconds") == 0 and not self.gone:
                    await self._doze(FIRST_PAUSE)  # the API server is doing it itself
                if not self.gone and await self._delete():
                    return
            else:
                await self._wake.wait()

    async def _job_gone(self) -> None:
        """Wait for the job's own end, so that nothing of it works in the folder; a job that lingers is cancelled."""
        if not self._has_job():
            return
        if self._long_over:  # thousands of old Pods after a restart: one look at the queue for all of them
            if all(job.state.ended for job in (await self._kit.first_look()).get(self.uid, [])):
                return
            self._track()
        begin = stopping.now()
        while self.job is None or not self.job.state.ended:
            self._wake.clear()
            self._kit.pleg.poke()
            overdue = stopping.now() - begin >= LINGER_SECONDS
            if overdue:
                log.warning("Slurm job %s goes on after the Pod's end: cancelled", self.submission.job_id)
                with contextlib.suppress(errors.SlurmUnknown):
                    await self._kit.slurm.cancel(self.submission.job_id)
                begin = stopping.now()
            await self._doze(LINGER_SECONDS)
        self._kit.pleg.untrack(self.uid)

    async def _delete(self) -> bool:
        """Remove the object from the API. False: try again."""
        faults.point("before-delete")
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        try:
            await self._kit.client.delete(kube_client.pods_path(self.namespace, self.name), options)
        except (kube_errors.NotFound, kube_errors.Conflict):
            return True  # gone, or another one by now
        except errors.APIError as exc:
            log.warning("cannot delete the Pod: %s", exc.message)
            await asyncio.sleep(FIRST_PAUSE)
            return False
        # finalizers may hold it back: then the watch tells when it has gone
        while not self.gone:
            self._wake.clear()
            await self._wake.wait()
        return True

    async def _remove(self) -> None:
        faults.point("before-remove")
        self._kit.pleg.untrack(self.uid)
        self._kit.statuses.forget(self.uid)
        self._kit.forget(self.uid)
        faults.point("before-remove")
        await asyncio.to_thread(shutil.rmtree, self.dir.root, True)

    # -- telling -------------------------------------------------------------------------------------------------------

    def _show(self, waiting: status.Waiting) -> None:
        """Make the status of the present facts known."""
        if not self.gone:
            self._teller.show(self.pod, self.report, self.ended, waiting, self._queue.condition)

    def _event(self, kind: str, reason: str, message: str, *, container: str = "") -> None:
        self._teller.event(self.pod, kind, reason, message, container=container)


class PodWorkers:
    """All workers, by Pod UID."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, uid: str) -> PodWorker | None:
        return self._workers.get(uid)

    def update(self, pod: Object, *, gone: bool = False) -> None:
        """There is a new or changed Pod; with ``gone`` it is one that the API has no more, of which something may be left."""
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is None:
            worker = self._workers[uid] = PodWorker(self._kit, pod, gone=gone)
            self._tasks[uid] = asyncio.create_task(self._run(worker), name=f"pod {worker.namespace}/{worker.name}")
        elif gone:
            worker.removed(pod)
        else:
            self._kit.statuses.observe(pod)
            worker.update(pod)

    async def _run(self, worker: PodWorker) -> None:
        await worker.run()
        self._workers.pop(worker.uid, None)
        self._tasks.pop(worker.uid, None)

    def on_report(self, uid: str, report: Object) -> None:
        if worker := self._workers.get(uid):
            worker.on_report(report)  # else its worker will read it from disk

    def on_job(self, uid: str, job: commands.Job) -> None:
        if worker := self._workers.get(uid):
            worker.on_job(job)

    def on_channel(self, uid: str) -> None:
        if worker := self._workers.get(uid):
            worker.on_channel()

    async def stop(self) -> None:
        """End the workers, not the Pods."""
        await tasks.stop(list(self._tasks.values()))
