import pytest

from hpk.slurm import states
from hpk.slurm.states import JobState


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("PENDING", JobState.PENDING),
        ("RUNNING", JobState.RUNNING),
        ("COMPLETING", JobState.RUNNING),
        ("SUSPENDED", JobState.RUNNING),
        ("COMPLETED", JobState.COMPLETED),
        ("CANCELLED by 1001", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("OUT_OF_MEMORY", JobState.OUT_OF_MEMORY),
        ("BOOT_FAIL", JobState.NODE_FAIL),
        ("DEADLINE", JobState.TIMEOUT),
        ("SOMETHING_NEW", JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
    ],
)
def test_words(word: str, state: JobState) -> None:
    assert states.parse(word) is state


def test_what_is_not_known_has_not_ended() -> None:
    assert not JobState.UNKNOWN.ended
    assert JobState.GONE.ended
    assert [state for state in JobState if not state.ended] == [JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN]


@pytest.mark.parametrize(
    "words",
    [
        "unrecognized option '--no-such-flag=1'",
        "Invalid --time specification",
        'Invalid numeric value "x" for --ntasks.',
        "Invalid generic resource (gres) specification",
        "invalid partition specified: moon; Batch job submission failed: Invalid partition name specified",
        "Memory specification can not be satisfied; Batch job submission failed: Requested node configuration is not available",
        "CPU count per node can not be satisfied; Batch job submission failed: Requested node configuration is not available",
        "allocation failure: Requested node configuration is not available",
        "Batch job submission failed: Invalid account or account/partition combination specified",
        "Batch job submission failed: Invalid qos specification",
        "Batch job submission failed: Invalid feature specification",
        "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        "Batch job submission failed: User's group not permitted to use this partition",
        "QOSMaxWallDurationPerJobLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)",
        "Batch job submission failed: More processors requested than permitted",
    ],
)
def test_refusals_that_stay(words: str) -> None:
    assert states.is_permanent(words)
    assert not states.is_no_answer(words)


@pytest.mark.parametrize(
    "words",
    [
        "QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)",
        "AssocMaxSubmitJobLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)",
        "Batch job submission failed: Slurm temporarily unable to accept job, sleeping and retrying",
        "Batch job submission failed: Resource temporarily unavailable",
        "Batch job submission failed: Required partition not available (inactive or drain)",
        "Batch job submission failed: Required node not available (down, drained or reserved)",
        "Batch job submission failed: I/O error writing script/environment to file",
        "Batch job submission failed: Invalid authentication credential",
        "Batch job submission failed: Unspecified error",  # a site's job_submit plugin, perhaps
    ],
)
def test_refusals_that_may_pass(words: str) -> None:
    assert not states.is_permanent(words)
    assert not states.is_no_answer(words)


@pytest.mark.parametrize(
    "words",
    [
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Socket timed out on send/recv operation",
        "Batch job submission failed: Zero Bytes were transmitted or received",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    ],
)
def test_no_answer(words: str) -> None:
    assert states.is_no_answer(words)
