"""``hpk up``: submit the control plane's job, unless it is there, and tell step by step how far it is."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import shlex
import sys
import sysconfig
import time
from typing import Any

from hpk import config as configuration
from hpk import errors, files, paths, procs
from hpk.bootstrap import jobs, lock, logfiles, node, statedir
from hpk.slurm import commands, states

#: Pace of looking at the state directory and of asking Slurm, in seconds.
LOOK_SECONDS = 0.1
ASK_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="submit and return; `hpk status` shows how far it is")
    parser.add_argument("--timeout", type=float, default=0.0, metavar="SECONDS", help="stop waiting after this time (the job goes on)")
    parser.add_argument("--script", metavar="FILE", help="job script instead of ~/.hpk/hpk.sbatch or the one that comes with HPK")
    parser.add_argument("flags", nargs="*", metavar="SBATCH-FLAG", help="after --: more flags for sbatch, e.g. -- --partition=long")


def find_script(where: paths.Paths, given: str | None) -> str:
    """Return the job script: ``given``, the user's own in the state directory, the tree's, the installed one."""
    tree = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    known = [
        os.path.join(where.root, "hpk.sbatch"),
        os.path.join(tree, "slurm", "hpk.sbatch"),
        os.path.join(sysconfig.get_path("data"), "share", "hpk", "hpk.sbatch"),
    ]
    for script in [given] if given else known:
        if os.path.isfile(script):
            return script
    if given:
        raise errors.InvalidInput(f"--script: {given} does not exist")
    raise errors.InvalidInput("the job script hpk.sbatch was not found", hint="name it by --script")


@dataclasses.dataclass
class Ticker:
    """Prints one line per step, each once."""

    began: float
    submitted: bool
    """Whether the job is ours: else it may have been ready for long, and its steps are no news."""
    shown: int = 0
    waiting: str = ""

    def tick(self, text: str) -> None:
        mark = "✓" if (sys.stdout.encoding or "").lower().startswith("utf") else "ok"
        print(f"{mark} {text:<40} {time.monotonic() - self.began:6.1f} s", flush=True)

    def steps(self, steps: list[dict[str, Any]]) -> None:
        for step in steps[self.shown :]:
            self.tick(step["name"])
        self.shown = len(steps)

    def wait(self, text: str) -> None:
        if text != self.waiting:
            print(f"… {text}" if (sys.stdout.encoding or "").lower().startswith("utf") else f".. {text}", flush=True)
            self.waiting = text


def read_report(where: paths.Paths) -> dict[str, Any]:
    """Return run/cluster.json, or an empty dict when there is none that can be read."""
    try:
        value = files.read_json(where.cluster_run)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def known_jobs(where: paths.Paths) -> set[str]:
    """Return the ids that the state directory knows the control plane's job by."""
    holder, _ = lock.read(where.lock)
    found = {holder.job_id} if holder else set()
    try:
        found.add(str(files.read_json(where.submitted)["jobID"]))  # type: ignore[index]
    except (OSError, ValueError, TypeError, KeyError):
        pass  # submitted by hand, or never
    return found - {""}


async def submit(where: paths.Paths, script: str, flags: list[str]) -> str:
    """Submit the job with this very hpk; return its id."""
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    files.private_dir(where.logs)
    os.environ["HPK_SELF"] = sys.executable
    os.environ["HPK_HOME"] = where.root
    os.environ["PYTHONPATH"] = ":".join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    job_id = await jobs.submit(script, [f"--output={os.path.join(where.logs, jobs.OUTPUT)}", f"--comment={jobs.comment(where)}", *flags])
    files.write_json(where.submitted, {"jobID": job_id})
    return job_id


def last_words(where: paths.Paths, job_id: str) -> str:
    """Return what is known of why the job ended."""
    report = read_report(where)
    if report.get("jobID") == job_id and report.get("error"):
        return str(report["error"])
    said = logfiles.last_words(os.path.join(where.logs, jobs.OUTPUT.replace("%j", job_id)))
    return said.removeprefix("hpk: error: ")


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    statedir.check_version(where)
    config = configuration.load(where)
    slurm = commands.Slurm(config)
    script = find_script(where, args.script)
    procs.find("sbatch", hint="load the site's Slurm module, or `hpk slurm up` where the site has no Slurm")
    job = await jobs.control_plane(slurm, where, known_jobs(where))
    ticker = Ticker(time.monotonic(), submitted=job is None)
    if job is None:
        holder, _ = lock.read(where.lock)
        if holder and not holder.job_id and (holder.host != node.host_name() or lock.process_start(holder.pid) == holder.started):
            raise errors.StateError(f"the control plane runs already: {holder.describe()}", hint="`hpk status` shows it")
        if not config.control_plane.image and not config.control_plane.binaries:
            statedir.find_image(where, config)  # the job would tell the same, later
        statedir.prepare(where)
        _forget(where)
        job_id = await submit(where, script, args.flags)
        ticker.tick(f"submitted: job {job_id}")
    else:
        job_id = job.job_id
        ticker.tick(f"job {job_id} is there already")
        if job.state is states.JobState.PENDING:  # also one that ran and was put back into the queue: its node failed
            _forget(where)
    if args.no_wait:
        return 0
    await follow(slurm, where, job_id, ticker, args.timeout)
    print(f"export KUBECONFIG={shlex.quote(where.kubeconfig)}", flush=True)
    return 0


def _forget(where: paths.Paths) -> None:
    """Remove the report of a run that is over: the number of its job may come again."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(where.cluster_run)


async def follow(slurm: commands.Slurm, where: paths.Paths, job_id: str, ticker: Ticker, timeout: float) -> None:
    """Wait until job ``job_id`` says that the cluster is ready. Raises StateError when it ends, or after ``timeout`` > 0 seconds."""
    asked, started = 0.0, False
    while True:
        report = read_report(where)
        if report.get("jobID") == job_id and report.get("phase") in ("starting", "ready"):
            if not started:
                if report["ready"] and not ticker.waiting and not ticker.submitted:
                    return  # it was up before we came
                started = True
                ticker.tick(f"job runs on {report['host']}")
            ticker.steps(report["steps"])
            if report["ready"]:
                return
        if time.monotonic() - asked > ASK_SECONDS:
            asked = time.monotonic()
            started = await _ask(slurm, where, job_id, ticker, started)
        if timeout and time.monotonic() - ticker.began > timeout:
            raise errors.StateError(f"not ready after {timeout:g} s; job {job_id} goes on", hint="`hpk status` shows how far it is")
        await asyncio.sleep(LOOK_SECONDS)


async def _ask(slurm: commands.Slurm, where: paths.Paths, job_id: str, ticker: Ticker, started: bool) -> bool:
    """Ask Slurm for the job: show why it waits, raise StateError when it has ended; return whether its start was shown."""
    try:
        job = (await slurm.jobs()).get(job_id)
    except errors.SlurmUnknown as exc:
        ticker.wait(exc.message)  # not an answer: keep waiting
        return started
    if job is None or job.state.ended:
        why = last_words(where, job_id)
        raise errors.StateError(
            f"job {job_id} ended ({job.word if job else 'unknown to Slurm'})" + (f": {why}" if why else ""),
            hint=f"its output: {os.path.join(where.logs, jobs.OUTPUT.replace('%j', job_id))}, the parts' logs beside it",
        )
    if job.state is states.JobState.PENDING:
        ticker.wait(f"job {job_id} is queued" + (f": {job.reason}" if job.reason not in ("", "None") else ""))
    return started
