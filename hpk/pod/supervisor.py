"""The supervisor: one process per Pod, in its Slurm job, that runs the containers and tells the kubelet what happens.

This module is the I/O around the Machine (machine.py): children, timers, signals, files, the channel. What is to be done is
decided there. Standard library only, one thread, one poll(2).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from hpk import files, records, sandbox
from hpk.pod import channel, execs, hooks, loop, machine, node, oom, probes, processes, report, runtime, volumes, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds that the end of the job waits for the kubelet to have the last report.
FAREWELL = 3.0
#: Pauses between attempts to make the volumes, in seconds: first ones, later ones.
VOLUME_PAUSES = (5.0, 30.0)

TERMINATED_MESSAGE = "Slurm asked the job to end: scancel, preemption or its time limit"
TIME_LIMIT_MESSAGE = "The Slurm job reached its time limit"


class Supervisor:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.loop = loop.Loop()
        self.scratch = node.Scratch(plan)
        host_ip = node.address(plan["kubelet"]) if plan.get("kubelet") else node.address({})
        values = {"POD_IP": host_ip, "HOST_IP": host_ip, "SCRATCH": self.scratch.disk, "SHM": self.scratch.memory}
        self.plan: dict[str, Any] = node.replace_values(plan, values)
        self.machine = machine.Machine(self.plan, time.monotonic(), time.time())
        self.facts: dict[str, Any] = {
            "jobID": os.environ.get("SLURM_JOB_ID", ""),
            "host": os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
            "hostIP": host_ip,
            "podIP": host_ip,
            "startedAt": records.now(),
            "sandboxReady": False,
        }
        self.seq = 0
        self.timer: loop.Timer | None = None
        self.status_path = os.path.join(plan["podDir"], "status.json")
        self.channel: channel.Channel | None = None
        if plan.get("kubelet", {}).get("endpointFile"):
            hello = {"uid": plan["uid"], "jobID": self.facts["jobID"], "host": self.facts["host"]}
            self.channel = channel.Channel(self.loop, plan["kubelet"], hello, self.on_frame)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("HPK_") or name == "HPK_PYTHON"}
        self.env.update({f"HPK_{name}": value for name, value in values.items()})
        self.box = sandbox.Sandbox()
        self.execs = execs.Execs(self.loop, self.box)
        self.guard: processes.Guard
        self.runtime: runtime.Runtime
        self.hooks: hooks.Hooks
        self.probes: probes.Probes
        self.oom_kills = oom.kills()
        self.retried: set[str] = set()  # containers whose working directory we made
        self.volume_attempts = 0
        self.saving_failed = ""
        self.last_words = False

    # -- life -------------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run the Pod to its end. Returns the job's exit code."""
        self._catch_signals()
        sandbox.prctl(sandbox.PR_SET_CHILD_SUBREAPER, 1)
        try:
            if self.channel is not None:
                self.loop.later(0, self.channel.dial)
            self.guard = processes.Guard([self.scratch.disk, self.scratch.memory])
            self._make_sandbox()
            self.scratch.remove_stale()
            self.loop.run()
        finally:
            processes.kill_descendants()
            self.scratch.remove()
            if self.channel is not None:
                self.channel.close()
        return 0 if self.machine.phase == "Succeeded" else 1

    def _catch_signals(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.loop.watch(read, loop.READ, lambda _: self._on_signals(os.read(read, 4096)))

    def _make_sandbox(self) -> None:
        try:
            self.box.fds = sandbox.create(self.plan["namespaces"], self.plan.get("hostname", "")).fds
            node.name_users(self.box, self.plan, self.scratch.disk)
        except (sandbox.SandboxError, OSError) as error:
            # a set-uid runtime works without: better a Pod with less isolation than none, and its owner is told
            words.say(f"sandbox: {error}")
            self.box.close()
            self._event("Warning", "NoSandbox", f"Containers run as the user's own processes, under the node's host name: {error}")
        self.runtime = runtime.Runtime(self.plan, self.loop, self.box, self.env, self.on_started, self.on_exited)
        self.hooks = hooks.Hooks(self.loop, self.execs, self.facts["podIP"])
        self.probes = probes.Probes(self.loop, self.execs, self.facts["podIP"], self.on_probe, self._event)
        self.facts["sandboxReady"] = True
        self._make_volumes()

    def _make_volumes(self) -> None:
        """Make the job's volumes, then begin; what is not there yet may come (a hostPath): tried again, as the kubelet does."""
        if self.machine.stopping:
            return
        for volume in self.plan.get("jobVolumes", []):
            try:
                volumes.make(volume)
            except volumes.VolumeError as error:
                self._event("Warning", "FailedMount", str(error))
                self.volume_attempts += 1
                self.loop.later(VOLUME_PAUSES[self.volume_attempts > 3], self._make_volumes)
                self._after_event()
                return
        self._machine().begin(self._deadline())
        self._watch_sizes()
        self._after_event()

    def _watch_sizes(self) -> None:
        if any(volume.get("sizeLimit") for volume in self.plan.get("jobVolumes", [])):
            from hpk.pod import emptydirs

            emptydirs.Limits(self.loop, emptydirs.limited(self.plan), lambda message: self._evict(message, emptydirs.GRACE))

    def _evict(self, message: str, grace: float) -> None:
        self._event("Warning", "Evicted", message)
        self._machine().stop(grace, "Evicted", message, failed=True)
        self._after_event()

    def _deadline(self) -> float | None:
        seconds = self.plan.get("activeDeadlineSeconds")
        if seconds is None:
            return None
        begun = time.time()
        try:
            import calendar

            begun = calendar.timegm(time.strptime(self.plan["startTime"], "%Y-%m-%dT%H:%M:%SZ"))
        except (KeyError, ValueError):
            pass
        return time.monotonic() + begun + float(seconds) - time.time()

    # -- what happens -----------------------------------------------------------------------------------------------------

    def _machine(self) -> machine.Machine:
        return self.machine.at(time.monotonic(), time.time())

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            reason, message = "Terminated", TERMINATED_MESSAGE
            end = os.environ.get("SLURM_JOB_END_TIME", "")
            if end.isdigit() and int(end) - time.time() < self.plan["terminationGracePeriodSeconds"] + 60:
                reason, message = "DeadlineExceeded", TIME_LIMIT_MESSAGE
            self._machine().stop(None, reason, message, failed=True)
            self._after_event()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.guard.remove(pid)
            if not self.execs.exited(pid, status) and not self.guard.exited(pid):
                self.runtime.reaped(pid, status)

    def on_frame(self, frame: dict[str, Any]) -> None:
        """A control frame of the kubelet."""
        if frame.get("type") == "stop":
            reason = str(frame.get("reason") or "")
            grace = frame.get("gracePeriodSeconds")
            self._machine().stop(None if grace is None else float(grace), reason, str(frame.get("message") or ""), failed=bool(reason))
            self._after_event()

    def on_started(self, name: str) -> None:
        self._machine().program_started(name)
        self._after_event()

    def on_exited(self, name: str, instance: runtime.Instance, status: int) -> None:
        spec = self.machine.containers[name].spec
        code = processes.exit_code(status)
        reason, message = "", ""
        error = self.runtime.start_error(instance, spec, code)
        if error and "failed to set working directory" in error and name not in self.retried and not spec.get("readOnlyRootFilesystem"):
            # containerd makes a missing working directory; the runtime does not, so the writable layer gets it
            self.retried.add(name)
            os.truncate(instance.log.path, 0)  # the runtime's complaint is not the container's output
            self._start(name)
            return
        if error:
            code, reason, message = runtime.START_ERROR, "StartError", error
        else:
            kills = oom.kills()
            if kills > self.oom_kills and code == 128 + signal.SIGKILL:
                reason = "OOMKilled"
            self.oom_kills = kills
            message = self.runtime.termination_message(instance, spec, code != 0)
        if instance.log.problem:
            self._event("Warning", "LogProblem", f"log of container {name}: {instance.log.problem}", name)
        self._machine().exited(name, code, reason, message)
        self._after_event()

    def on_probe(self, name: str, kind: str, ok: bool) -> None:
        self._machine().probe_result(name, kind, ok)
        self._after_event()

    def _tick(self) -> None:
        self.timer = None
        self._machine().tick()
        self._after_event()

    def _event(self, kind: str, reason: str, message: str, container: str = "") -> None:
        self._machine().event(kind, reason, message, container)

    # -- what is done -----------------------------------------------------------------------------------------------------

    def _after_event(self) -> None:
        """Carry out what the machine asks for, set the timer, report."""
        while True:
            actions = self.machine.take_actions()
            if not actions:
                break
            for action in actions:
                self._act(*action)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        when = self.machine.next_time()
        if when is not None and self.machine.phase == "Running":
            self.timer = self.loop.later(when - time.monotonic(), self._tick)
        self._report()

    def _act(self, what: str, name: str = "", argument: Any = None) -> None:
        if what == "start":
            self.loop.later(0, lambda: self._start(name))
        elif what == "signal":
            self.runtime.signal(name, signal_number(argument))
        elif what == "kill":
            self.runtime.kill(name)
        elif what in ("post_start", "pre_stop"):
            self._run_hook(what, name, argument)
        elif what == "probe":
            self.probes.start(self.machine.containers[name].spec, self.runtime.instances[name])
        elif what == "unprobe":
            self.probes.stop(name)
        elif what == "done":
            self._finish()

    def _start(self, name: str) -> None:
        container = self.machine.containers[name]
        if container.state != machine.STARTING:
            return
        if container.stage:  # stopped before it began
            self._machine().exited(name, 128 + signal.SIGKILL)
            self._after_event()
            return
        working_dir = container.spec.get("workingDir", "") if name in self.retried else ""
        try:
            self._check_sub_paths(container.spec)
            problem = self.runtime.start(container.spec, container.restarts, working_dir)
        except (OSError, volumes.VolumeError) as error:
            self._machine().exited(name, runtime.START_ERROR, "StartError", str(error))
            self._after_event()
            return
        self.guard.add(self.runtime.instances[name].pid)
        if problem:
            words.say(f"container {name}: {problem}")  # its end, with this reason, is seen as that of any other

    def _check_sub_paths(self, spec: dict[str, Any]) -> None:
        """Look again before each start: a container of this Pod may have put a link where the folder was. Raises VolumeError."""
        sources = {mount["source"] for mount in spec.get("mounts", ())}
        for volume in self.plan.get("jobVolumes", []):
            if volume["kind"] == "subPath" and volume["path"] in sources:
                try:
                    volumes.make(volume)
                except volumes.VolumeError as error:
                    text = f'failed to prepare subPath for volumeMount "{volume["name"]}" of container "{spec["name"]}"'
                    raise volumes.VolumeError(f"{text}: {error}") from error

    def _run_hook(self, what: str, name: str, seconds: float | None) -> None:
        spec = self.machine.containers[name].spec
        key, answer = ("postStart", "post_start_done") if what == "post_start" else ("preStop", "pre_stop_done")
        instance = self.runtime.instances[name]

        def done(problem: str) -> None:
            if problem:
                words.say(f"container {name}: {key}: {problem}")
            getattr(self._machine(), answer)(name, not problem)
            self._after_event()

        self.hooks.run(spec["lifecycle"][key], spec, instance, seconds, done)

    def _report(self) -> None:
        if not self.machine.changed:
            return
        self.machine.changed = False
        self.seq += 1
        value = report.report(self.machine, self.facts, self.seq)
        try:
            files.write_json(self.status_path, value)
            self.saving_failed = ""
        except OSError as error:
            # the channel still carries it; said once, not at every change
            if not self.saving_failed:
                words.say(f"{self.status_path}: {error}")
            self.saving_failed = str(error)
        if value["phase"] != "Running" and not self.last_words:
            self.last_words = True
            words.say(records.LAST_WORDS + json.dumps(value, separators=(",", ":")))
        if self.channel is not None:
            self.channel.send_report(value)

    def _finish(self) -> None:
        """The Pod is over: leave as soon as the kubelet has the last report, or after a moment if it does not take it."""
        self.loop.later(0, self._leave)
        self.leave_at = time.monotonic() + FAREWELL

    def _leave(self) -> None:
        if self.channel is not None and self.channel.up and not self.channel.idle and time.monotonic() < self.leave_at:
            self.loop.later(0.05, self._leave)
        elif self.saving_failed and time.monotonic() < self.leave_at + 60:
            self.machine.changed = True  # a full disk may be emptied: the report is all that remains of the Pod
            self._report()
            self.loop.later(5, self._leave)
        else:
            self.loop.stop()


def signal_number(name: str) -> int:
    """Number of a signal as images and Pods name them: SIGTERM, TERM, 15, SIGRTMIN+3."""
    text = str(name).upper()
    if text.isdigit():
        return int(text)
    if not text.startswith("SIG"):
        text = "SIG" + text
    base, _, offset = text.partition("+")
    number = getattr(signal, base, None)
    return int(number) + (int(offset) if offset.isdigit() else 0) if number is not None else int(signal.SIGTERM)


def main(argv: list[str]) -> int:
    """Run the Pod of the plan file ``argv[0]``. Returns 0 when it succeeded, 1 when it failed, 2 for a plan that cannot be used, 3
    when it has been run before."""
    if len(argv) != 1:
        sys.stderr.write("usage: supervisor PLAN\n")
        return 2
    try:
        plan = files.read_json(argv[0])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"hpk: error: {argv[0]}: {error}\n")
        return 2
    if not isinstance(plan, dict) or plan.get("version") != records.PLAN_VERSION:
        sys.stderr.write(f"hpk: error: {argv[0]}: not a plan of version {records.PLAN_VERSION}\n")
        return 2
    if earlier := ran_before(plan):
        words.say(f"this Pod has run already, in Slurm job {earlier}: it is not run a second time")
        return 3
    os.umask(0o022)
    return Supervisor(plan).run()


def ran_before(plan: dict[str, Any]) -> str:
    """Return the job in which the Pod was run before, "" for none.

    A controller that forgot its last seconds may start a job anew that runs already or has run; a Pod runs once. Outside of Slurm,
    by hand, it may run as often as wanted.
    """
    if not os.environ.get("SLURM_JOB_ID"):
        return ""
    try:
        return str((files.read_json(os.path.join(plan["podDir"], "status.json")) or {}).get("jobID") or "")
    except (OSError, ValueError, AttributeError):
        return ""
