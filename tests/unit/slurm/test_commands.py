import asyncio
import pathlib

import pytest

from hpk import errors
from hpk.slurm import commands
from hpk.slurm.states import JobState
from tests.fakes.slurm import FakeSlurm, squeue

UID = "0b2f9b0c-6d3a-4a52-9d5e-0c1c3f7a9a11"


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


async def test_submit_returns_the_id(fake: FakeSlurm) -> None:
    fake.answers({"command": "sbatch", "stdout": "42;cluster\n"})
    assert await fake.slurm.submit("/x/job.sh") == "42"
    assert fake.argvs("sbatch") == [["sbatch", "--parsable", "/x/job.sh"]]


async def test_nothing_of_the_enclosing_job_reaches_the_commands(fake: FakeSlurm) -> None:
    fake.answers({"command": "sbatch", "stdout": "42\n"}, {"command": "squeue"})
    await fake.slurm.jobs()
    assert fake.calls.pop()["environment"] == ["SLURM_CONF", "SLURM_TIME_FORMAT"]
    await fake.slurm.submit("/x/job.sh")
    assert fake.calls[-1]["environment"] == ["SLURM_CONF"]
    given = {"HOME": "/h", "AWS_SECRET": "x", "APPTAINERENV_X": "y", "APPTAINER_BIND": "/", "SITE": "s", "SLURM_JOB_ID": "1"}
    assert commands.job_environment(given, ["SITE"]) == {"HOME": "/h", "SITE": "s", "LC_MESSAGES": "C"}


async def test_refusal_has_slurms_words(fake: FakeSlurm) -> None:
    words = (
        "sbatch: error: invalid partition specified: moon\nsbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    fake.answers({"command": "sbatch", "stderr": words, "rc": 1})
    with pytest.raises(commands.Refused, match=r"^invalid partition specified: moon; Batch job submission failed") as caught:
        await fake.slurm.submit("/x/job.sh")
    assert caught.value.permanent


async def test_bad_option_is_named(fake: FakeSlurm) -> None:
    words = "sbatch: unrecognized option '--moon=1'\nTry \"sbatch --help\" for more information\n"
    fake.answers({"command": "sbatch", "stderr": words, "rc": 255})
    with pytest.raises(commands.Refused, match=r"^unrecognized option '--moon=1'$"):
        await fake.slurm.submit("/x/job.sh")


@pytest.mark.parametrize(
    "answer",
    [
        {"stderr": "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", "rc": 1},
        {"stderr": "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n", "rc": 1},
        {"stdout": "garbage\n"},
        {"stdout": ""},
    ],
)
async def test_unclear_answers_of_sbatch_are_unknown(fake: FakeSlurm, answer: dict) -> None:
    fake.answers({"command": "sbatch", **answer})
    with pytest.raises(errors.SlurmUnknown):
        await fake.slurm.submit("/x/job.sh")


async def test_sbatch_that_hangs_is_unknown(tmp_path: pathlib.Path) -> None:
    fake = FakeSlurm(tmp_path, timeout=0.5)
    fake.answers({"command": "sbatch", "stdout": "42\n", "sleep": 20})
    with pytest.raises(errors.SlurmUnknown, match="did not answer"):
        await fake.slurm.submit("/x/job.sh")


async def test_jobs(fake: FakeSlurm) -> None:
    out = squeue(
        {"id": 3, "state": "PENDING", "reason": "Priority", "nodes": "", "host": "n/a", "start": "900", "comment": f"hpk uid={UID}"},
        {"id": 4, "comment": "a|b\nsecond line\n", "name": "x y", "dir": f"/home/a/.hpk/pods/default_web_{UID}"},
        {"id": 5, "comment": "(null)", "dir": "/home/a/some_folder"},
    )
    fake.answers({"command": "squeue", "stdout": out})
    jobs = await fake.slurm.jobs()
    assert {job.job_id: job.pod_uid for job in jobs.values()} == {"3": UID, "4": UID, "5": ""}
    assert (jobs["3"].state, jobs["3"].start, jobs["3"].host) == (JobState.PENDING, 900.0, "")
    assert jobs["4"].name == "x y"
    assert len(fake.argvs("squeue")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"rc": 1, "stderr": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"},
        {"stdout": "Segmentation fault\n"},
        {"stdout": f"{commands.RECORD}3{commands.FIELD}RUN"},
        {"stdout": squeue({"id": 3, "comment": f"hpk uid={UID}"})[:-12]},  # cut in the last word
    ],
)
async def test_squeue_without_an_answer_is_unknown(fake: FakeSlurm, answer: dict) -> None:
    fake.answers({"command": "squeue", **answer})
    with pytest.raises(errors.SlurmUnknown):
        await fake.slurm.jobs()


async def test_no_jobs(fake: FakeSlurm) -> None:
    fake.answers({"command": "squeue", "stdout": ""})
    assert await fake.slurm.jobs() == {}


async def test_find_prefers_the_job_that_lives(fake: FakeSlurm) -> None:
    comment = f"hpk uid={UID}"
    out = squeue({"id": 3, "state": "FAILED", "reason": "BadConstraints", "comment": comment}, {"id": 9, "comment": comment})
    fake.answers({"command": "squeue", "stdout": out})
    job = await fake.slurm.find(UID)
    assert job is not None
    assert job.job_id == "9"
    assert await fake.slurm.find("another") is None


async def test_history_takes_the_last_of_a_reused_id(fake: FakeSlurm) -> None:
    def line(state: str, submitted: int) -> str:
        return commands.FIELD.join(["5", state, "c1", str(submitted), "1", "2", "ns/a", "/x", f"hpk uid={UID}"]) + "\n"

    fake.answers({"command": "sacct", "stdout": line("TIMEOUT", 200) + line("FAILED", 100) + "broken line\n"})
    assert (await fake.slurm.history(["5"]))["5"].state is JobState.TIMEOUT
    assert "--jobs=5" in fake.argvs("sacct")[0]


async def test_history_without_accounting_is_empty(fake: FakeSlurm) -> None:
    fake.answers({"command": "sacct", "rc": 1, "stderr": "Slurm accounting storage is disabled\n"})
    assert await fake.slurm.history(["5"]) == {}
    assert await fake.slurm.history([]) == {}


async def test_cancel(fake: FakeSlurm) -> None:
    fake.answers(
        {"command": "scancel", "argv": "13$", "rc": 1, "stderr": "scancel: error: Kill job error on job id 13: Invalid job id specified\n"},
        {"command": "scancel", "argv": "14$", "rc": 8, "stderr": "scancel: error: Unable to contact slurm controller\n"},
        {"command": "scancel"},
    )
    await fake.slurm.cancel("12", signal="TERM", batch=True)
    assert fake.argvs("scancel") == [["scancel", "--quiet", "--signal=TERM", "--batch", "12"]]
    await fake.slurm.cancel("13")
    with pytest.raises(errors.SlurmUnknown):
        await fake.slurm.cancel("14")


async def test_jobs_cancelled_in_the_same_moment_share_a_command(fake: FakeSlurm) -> None:
    fake.answers({"command": "scancel", "times": 1}, {"command": "scancel", "rc": 1, "stderr": "scancel: error: Unable to contact\n"})
    await asyncio.gather(*(fake.slurm.cancel(str(number)) for number in range(3)))
    assert fake.argvs("scancel") == [["scancel", "--quiet", "0", "1", "2"]]
    answers = await asyncio.gather(fake.slurm.cancel("4"), fake.slurm.cancel("5"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [errors.SlurmUnknown, errors.SlurmUnknown]


async def test_capacity_counts_each_node_once_and_no_dead_ones(fake: FakeSlurm) -> None:
    def node(name: str, state: str, gres: str) -> str:
        return commands.RECORD + commands.FIELD.join([name, state, "8", "16000", gres]) + "\n"

    out = node("c1", "idle", "gpu:a100:2(S:0-1)") * 2 + node("c2", "allocated", "gpu:a100:2") + node("c3", "down*", "(null)")
    fake.answers({"command": "sinfo", "stdout": out + node("c4", "idle*", "")})
    assert await fake.slurm.capacity() == commands.Capacity(
        cpus=16, memory_bytes=32000 * 1024 * 1024, gres={"gpu": 4, "gpu:a100": 4}, nodes=2
    )


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("(null)", {}),
        ("gpu:2", {"gpu": 2}),
        ("gpu:a100:2(S:0-1),gpu:v100:1,shard:8", {"gpu": 3, "gpu:a100": 2, "gpu:v100": 1, "shard": 8}),
        ("bandwidth:4K", {"bandwidth": 4096}),
    ],
)
def test_gres(text: str, counts: dict[str, int]) -> None:
    assert commands.parse_gres(text) == counts


async def test_request_of_a_job(fake: FakeSlurm) -> None:
    line = commands.FIELD.join(["hpk", "long", "(null)", "normal", "1-00:00:00", "2G", "(null)", "(null)"]) + "\n"
    fake.answers({"command": "squeue", "stdout": line})
    assert await fake.slurm.request("7") == ["--job-name=hpk", "--partition=long", "--qos=normal", "--time=1-00:00:00", "--mem=2G"]
    with pytest.raises(errors.SlurmUnknown):
        commands.parse_request("what?\n")
