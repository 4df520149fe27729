"""Slurm's commands: argv in, dataclass out. The only module that knows their flags and what they print.

``squeue``, ``sacct`` and ``sinfo`` are asked for fields between control characters that no name can hold; a comment or work
directory of somebody's other job may hold anything else, line breaks included. Times are seconds since the epoch.
The commands get the caller's environment without the variables by which Slurm's own jobs and users' habits change what they do
(the kubelet runs inside a Slurm job itself).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from hpk import config as configuration
from hpk import errors, procs
from hpk.slurm import states

RECORD, FIELD = "\x1e", "\x1f"
#: The last separator shows that the record was not cut: half a comment would be another Pod's.
_SQUEUE = RECORD + FIELD.join(["%i", "%T", "%r", "%N", "%B", "%V", "%S", "%e", "%j", "%Z", "%k", ""])
_SACCT = ["JobIDRaw", "State", "NodeList", "Submit", "Start", "End", "JobName", "WorkDir", "Comment"]
_SINFO = RECORD + FIELD.join(["%N", "%T", "%c", "%m", "%G"])

#: What a job asked for, whether by its script, sbatch's arguments or the site's defaults: sbatch's flag and squeue's format for it.
_REQUEST = {
    "--job-name": "%j",
    "--partition": "%P",
    "--account": "%a",
    "--qos": "%q",
    "--time": "%l",
    "--mem": "%m",
    "--constraint": "%f",
    "--reservation": "%v",
}

#: How the comment of a Pod's job begins; the UID follows.
UID_COMMENT = "hpk uid="
_PRIVATE = ("SLURM", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "SRUN_", "SALLOC_")
_KEPT = frozenset({"SLURM_CONF"})

#: What a Pod's job gets of the kubelet's environment: how to find programs, nothing of the user's that containers or Apptainer
#: would act on. Not sbatch's own ``--export`` with a list or NONE: for that Slurm starts a login shell on the node first, which
#: cost 0.75 s a job where it was measured.
_JOB_VARIABLES = frozenset(
    {"HOME", "LANG", "LD_LIBRARY_PATH", "LOGNAME", "MODULEPATH", "PATH", "SHELL", "SLURM_CONF", "USER", "HPK_PYTHON"}
    | {f"{runtime}_{name}" for runtime in ("APPTAINER", "SINGULARITY") for name in ("CACHEDIR", "CONFIGDIR", "TMPDIR")}
)

#: sbatch at the same time. More do not get jobs in faster: the controller takes one after the other.
PARALLEL_SUBMITS = 4
#: Jobs in one scancel, and how long the first one waits for others, in seconds.
CANCEL_BATCH = 200
CANCEL_DELAY = 0.02


class Refused(errors.SlurmError):
    """sbatch said no; the message is Slurm's own. ``permanent``: it will say so again whenever it is asked."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A job of the user as squeue or sacct describes it."""

    job_id: str
    state: states.JobState
    word: str
    """Slurm's own name of the state."""
    reason: str
    """Why it is pending, or ended so."""
    nodes: str
    host: str
    """The node that runs the batch script."""
    submitted: float
    start: float
    """When it started or, while it is pending, is expected to; 0: not known."""
    end: float
    name: str
    work_dir: str
    comment: str

    @property
    def pod_uid(self) -> str:
        """UID of the Pod whose job this is, from the comment or, where a site drops comments, the work directory; else empty."""
        if self.comment.startswith(UID_COMMENT):
            return self.comment[len(UID_COMMENT) :].split(" ", 1)[0]
        tail = os.path.basename(self.work_dir).rpartition("_")[2]
        return tail if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", tail) else ""


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What the cluster (or the configured partition) has, without nodes that are down."""

    cpus: int
    memory_bytes: int
    gres: Mapping[str, int]
    """By gres name (``gpu``) and by name and type (``gpu:a100``)."""
    nodes: int


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` for Slurm's commands: nothing that would change flags, formats or the language of messages."""
    clean = {name: value for name, value in environ.items() if name in _KEPT or not name.startswith(_PRIVATE)}
    return {**clean, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}


def job_environment(environ: Mapping[str, str], extra: Sequence[str] = ()) -> dict[str, str]:
    """Return what of ``environ`` sbatch gets and hands on to the job. ``extra``: further names, from ``slurm.environment``."""
    return {name: value for name, value in environ.items() if name in _JOB_VARIABLES or name in extra} | {"LC_MESSAGES": "C"}


class Slurm:
    """Raises SlurmUnknown when Slurm does not answer, MissingTool when a command is not on PATH."""

    def __init__(self, config: configuration.Config, environ: Mapping[str, str] | None = None) -> None:
        self._timeout = config.slurm.timeout
        self._partition = config.slurm.partition
        self._env = environment(os.environ if environ is None else environ)
        self._job_env = job_environment(os.environ if environ is None else environ, config.slurm.environment)
        self._submits = asyncio.Semaphore(PARALLEL_SUBMITS)
        self._cancels: list[tuple[str, asyncio.Future[None]]] = []
        self._canceller: asyncio.Task[None] | None = None

    async def _run(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> procs.Completed:
        try:
            return await procs.arun(argv, env=env or self._env, timeout=self._timeout)
        except errors.ProcessError as exc:
            raise errors.SlurmUnknown(f"{argv[0]} did not answer within {self._timeout:g} s") from exc

    async def _ask(self, argv: Sequence[str]) -> str:
        done = await self._run(argv)
        if done.returncode != 0:
            raise errors.SlurmUnknown(f"{argv[0]}: {_words(done)}")
        return done.stdout

    async def submit(self, script: str) -> str:
        """sbatch ``script`` and return the job's id. Raises Refused; SlurmUnknown: the job may exist or not."""
        async with self._submits:
            done = await self._run(["sbatch", "--parsable", script], self._job_env)
        if done.returncode == 0:
            found = re.search(r"^(\d+)(;.*)?$", done.stdout, re.MULTILINE)
            if not found:
                raise errors.SlurmUnknown(f"sbatch: no job id in its answer {done.stdout.strip()[:200]!r}")
            return found.group(1)
        words = _words(done)
        if done.returncode < 0 or states.is_no_answer(words):
            raise errors.SlurmUnknown(f"sbatch: {words or f'killed by signal {-done.returncode}'}")
        raise Refused(words or f"sbatch failed with exit code {done.returncode}", permanent=states.is_permanent(words))

    async def test(self, script: str) -> None:
        """Ask whether any nodes could run ``script``, now or later (sbatch --test-only). Raises Refused if not, SlurmUnknown."""
        done = await self._run(["sbatch", "--test-only", script], self._job_env)
        words = _words(done)
        if done.returncode != 0:
            if done.returncode < 0 or states.is_no_answer(words):
                raise errors.SlurmUnknown(f"sbatch: {words}")
            raise Refused(words, permanent=states.is_permanent(words))

    async def jobs(self) -> dict[str, Job]:
        """All jobs of the user that the controller knows, the ended ones too until it forgets them: {job id: Job}."""
        out = await self._ask(["squeue", "--me", "--states=all", "--noheader", f"--format={_SQUEUE}"])
        return {job.job_id: job for job in _parse_squeue(out)}

    async def request(self, job_id: str) -> list[str]:
        """sbatch's flags that ask for what this job was given: for another one like it. Raises SlurmUnknown."""
        return parse_request(await self._ask(["squeue", "--noheader", f"--jobs={job_id}", f"--format={FIELD.join(_REQUEST.values())}"]))

    async def find(self, uid: str) -> Job | None:
        """The job of the Pod with this UID, one that has not ended before one that has. None: the controller surely has none."""
        return choose(job for job in (await self.jobs()).values() if job.pod_uid == uid)

    async def history(self, ids: Iterable[str]) -> dict[str, Job]:
        """What accounting says about ended jobs. It lags by seconds, and has nothing where a site keeps no accounts.

        Only ends may be believed: while the controller is down it calls running jobs pending. Of a reused id, the last one counts.
        """
        wanted = ",".join(ids)
        if not wanted:
            return {}
        argv = ["sacct", "--allocations", "--noheader", "--parsable2", f"--delimiter={FIELD}", "--duplicates", "--starttime=1970-01-02"]
        done = await self._run([*argv, f"--format={','.join(_SACCT)}", f"--jobs={wanted}"])
        if done.returncode != 0:
            if "disabled" in done.stderr:
                return {}
            raise errors.SlurmUnknown(f"sacct: {_words(done)}")
        found: dict[str, Job] = {}
        for job in _parse_sacct(done.stdout):
            if job.job_id not in found or found[job.job_id].submitted <= job.submitted:
                found[job.job_id] = job
        return found

    async def cause(self, job: Job, *, warning: float) -> Job:
        """Ask why a job was told to end, which the state of one that then ended by itself does not tell; return it corrected.

        It was preempted when it has a PreemptTime, and at its time limit when it ended within ``warning`` seconds of it: Slurm's
        warning signal (--signal) comes up to a minute early.
        """
        out = await self._ask(["scontrol", "--oneliner", "show", "job", job.job_id])
        fields = {name: value for name, _, value in (word.partition("=") for word in out.split())}
        if fields.get("PreemptTime", "None") not in ("None", "N/A", "Unknown"):
            return dataclasses.replace(job, state=states.JobState.PREEMPTED, word="PREEMPTED")
        limit = _duration(fields.get("TimeLimit", ""))
        start, end = _time(fields.get("StartTime", "")), _time(fields.get("EndTime", ""))
        if limit and start and start + limit - end <= warning + 60:
            return dataclasses.replace(job, state=states.JobState.TIMEOUT, word="TIMEOUT")
        return job

    async def cancel(self, job_id: str, *, signal: str | None = None, batch: bool = False) -> None:
        """scancel; with ``signal`` only that signal is sent, with ``batch`` only to the batch script. An ended job is no error."""
        if signal or batch:
            flags = ([f"--signal={signal}"] if signal else []) + (["--batch"] if batch else [])
            await self._scancel([*flags, job_id])
            return
        # jobs that are cancelled in the same moment share a command: a namespace with a thousand Pods is deleted at once
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cancels.append((job_id, done))
        if self._canceller is None or self._canceller.done():
            self._canceller = asyncio.create_task(self._cancel_all(), name="scancel")
        await done

    async def _cancel_all(self) -> None:
        await asyncio.sleep(CANCEL_DELAY)
        while self._cancels:
            batch, self._cancels = self._cancels[:CANCEL_BATCH], self._cancels[CANCEL_BATCH:]
            failure: errors.HPKError | None = errors.SlurmUnknown("scancel was interrupted")
            try:
                await self._scancel([job_id for job_id, _ in batch])
                failure = None
            except errors.HPKError as exc:
                failure = exc
            finally:
                for _, done in batch:
                    if done.done():
                        continue
                    if failure is None:
                        done.set_result(None)
                    else:
                        done.set_exception(failure)

    async def _scancel(self, argv: Sequence[str]) -> None:
        done = await self._run(["scancel", "--quiet", *argv])
        words = _words(done)
        if done.returncode != 0 and not re.search(r"Invalid job id|already complet|not running", words, re.IGNORECASE):
            raise errors.SlurmUnknown(f"scancel: {words}")

    async def capacity(self) -> Capacity:
        """Sum over the nodes of the configured partition, or of all partitions."""
        argv = ["sinfo", "--noheader", "--Node", f"--format={_SINFO}"]
        if self._partition:
            argv.append(f"--partition={self._partition}")
        nodes: dict[str, tuple[int, int, str]] = {}
        for fields in _records(await self._ask(argv), 5):
            name, state, cpus, memory, gres = fields
            if not re.match(r"down|unk|fail|future|error", state, re.IGNORECASE) and not state.endswith("*"):
                nodes[name] = (_number(cpus), _number(memory), gres)
        total: dict[str, int] = {}
        for _, _, gres in nodes.values():
            for name, count in parse_gres(gres).items():
                total[name] = total.get(name, 0) + count
        return Capacity(
            cpus=sum(cpus for cpus, _, _ in nodes.values()),
            memory_bytes=sum(memory for _, memory, _ in nodes.values()) * 1024 * 1024,
            gres=total,
            nodes=len(nodes),
        )


def choose(jobs: Iterable[Job]) -> Job | None:
    """Of several jobs of one Pod: one that lives before one that has ended, one that ran before one that never did, the oldest."""

    def rank(job: Job) -> tuple[bool, bool, int]:
        return (job.state.ended, job.reason == "BadConstraints", int(job.job_id) if job.job_id.isdigit() else 0)

    return min(jobs, key=rank, default=None)


def parse_request(text: str) -> list[str]:
    """Read squeue's line of Slurm.request(). Raises SlurmUnknown for another one."""
    values = text.rstrip("\n").split(FIELD)
    if len(values) != len(_REQUEST):
        raise errors.SlurmUnknown(f"squeue: unreadable answer {text.strip()[:200]!r}")
    nothing = ("", "(null)", "N/A", "NOT_SET", "0")
    return [f"{flag}={value}" for flag, value in zip(_REQUEST, values, strict=True) if value not in nothing]


def parse_gres(text: str) -> dict[str, int]:
    """Read sinfo's ``gpu:a100:2(S:0-1),shard:8`` as {"gpu": 2, "gpu:a100": 2, "shard": 8}."""
    counts: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = item.strip().split(":")
        if len(parts) < 2 or not re.fullmatch(r"\d+[KMGT]?", parts[-1]):
            continue
        count = int(parts[-1].rstrip("KMGT")) * 1024 ** " KMGT".index(parts[-1][-1]) if parts[-1][-1].isalpha() else int(parts[-1])
        names = {parts[0], ":".join(parts[:-1])}
        for name in names:
            counts[name] = counts.get(name, 0) + count
    return counts


def _words(done: procs.Completed) -> str:
    """What a command said, on one line, without its own name."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    kept = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in lines if not line.startswith("Try ")]
    return "; ".join(line for line in kept if line)[: procs.MAX_OUTPUT]


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0


def _time(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _duration(text: str) -> float:
    """Seconds of Slurm's ``days-hours:minutes:seconds``; 0 for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return 0.0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _records(text: str, count: int) -> Iterable[list[str]]:
    for record in text.split(RECORD)[1:]:
        fields = record.removesuffix("\n").split(FIELD, count - 1)
        if len(fields) == count:
            yield fields
        else:
            raise errors.SlurmUnknown(f"a line of Slurm with {len(fields)} of {count} fields: {record[:200]!r}")


def _parse_squeue(text: str) -> Iterable[Job]:
    if text.strip() and RECORD not in text:
        raise errors.SlurmUnknown(f"squeue: unreadable answer {text.strip()[:200]!r}")
    for job_id, word, reason, nodes, host, submitted, start, end, name, work_dir, comment, _ in _records(text, 12):
        yield Job(
            job_id,
            states.parse(word),
            word,
            reason,
            nodes,
            "" if host == "n/a" else host,
            _time(submitted),
            _time(start),
            _time(end),
            name,
            work_dir,
            "" if comment == "(null)" else comment,
        )


def _parse_sacct(text: str) -> Iterable[Job]:
    for line in text.splitlines():
        fields = line.split(FIELD)
        if len(fields) != len(_SACCT):
            continue  # a piece of a comment with line breaks: no job of ours has one
        job_id, word, nodes, submitted, start, end, name, work_dir, comment = fields
        state = states.parse(word)
        yield Job(job_id, state, word, "", nodes, "", _time(submitted), _time(start), _time(end), name, work_dir, comment)
