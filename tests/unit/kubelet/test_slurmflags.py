import pytest

from hpk import errors
from hpk.kubelet import slurmflags


def flags(text: str) -> tuple[str, ...]:
    return slurmflags.slurm_flags({slurmflags.FLAGS: text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("--ntasks=8 --nodes=2", ("--ntasks=8", "--nodes=2")),
        ("-n 8 -N2 -p gpu", ("--ntasks=8", "--nodes=2", "--partition=gpu")),
        ("--ntasks 8 --exclusive", ("--ntasks=8", "--exclusive")),
        ("--exclusive --mem=0", ("--exclusive", "--mem=0")),
        ("-s -t=10", ("--oversubscribe", "--time=10")),
        ("--constraint='a&b|c'", ("--constraint=a&b|c",)),
        ('--reservation="my res"', ("--reservation=my res",)),
        ("--account=$(touch /tmp/x) ", None),
        ("--account='$(touch /tmp/x)`id`;rm'", ("--account=$(touch /tmp/x)`id`;rm",)),  # literal: never evaluated
        ("--no-such-flag=1", ("--no-such-flag=1",)),  # Slurm's own message tells
    ],
)
def test_flags(text: str, expected: tuple[str, ...] | None) -> None:
    if expected is None:
        with pytest.raises(errors.Rejected, match="flags begin with"):
            flags(text)
    else:
        assert flags(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "--array=1-3",
        "-a 1-3",
        "--arr=1-3",  # sbatch takes a beginning for the whole
        "--comment=x",
        "--comm=x",
        "--chdir=/tmp",
        "-D /tmp",
        "-D/tmp",
        "-J name",
        "--job-name=x",
        "--requeue",
        "--no-requeue",
        "--wrap=id",
        "--wra=id",
        "-o out",
        "--export=ALL",
        "--signal=B:USR1",
        "-M other",
        "--help",
        "-h",
        "--version",
        "-V",
        "--test-only",
        "-W",
        "--uid=0",
    ],
)
def test_owned_flags_are_refused_by_name(text: str) -> None:
    with pytest.raises(errors.Rejected, match=r"metadata.annotations\[slurm-job.hpk.io/flags\]: --[a-z-]+ cannot be set") as caught:
        flags(text)
    assert caught.value.reason == "InvalidSlurmFlags"


@pytest.mark.parametrize(
    "text", ["--dependency=afterok:1", "--deadline=now", "--exclude=n1", "--time=5", "--wait-all-nodes=1", "-x n1", "--hold"]
)
def test_other_flags_are_the_users(text: str) -> None:
    assert flags(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--account='x", "no closing quotation"),
        ("--account=x\n#SBATCH --wrap=id", "line break or control character"),
        ("--account=x\x07", "line break or control character"),
        ("--account=x\u2028y", "line break or control character"),
        ("foo", "'foo' is not a flag"),
        ("-Z 3", "'-Z' is not a flag of sbatch"),
        ("-", "'-' is not a flag"),
        ("-- x", "'--' is not a flag"),
        ("--a;b=1", "'--a;b' is not a flag"),
        ("-HW", "single-letter flags one by one"),
    ],
)
def test_bad_text(text: str, words: str) -> None:
    with pytest.raises(errors.Rejected, match=words):
        flags(text)


def test_mpi_flags() -> None:
    def mpi(text: str) -> tuple[str, ...] | None:
        return slurmflags.mpi_flags({slurmflags.MPI_FLAGS: text})

    assert slurmflags.mpi_flags({}) is None
    assert mpi("") == ()
    assert mpi("--mpi=pmix -n 4") == ("--mpi=pmix", "-n", "4")
    assert mpi("srun --mpi=pmix") == ("--mpi=pmix",)
    assert mpi("mpirun --bind-to core") == ("mpirun", "--bind-to", "core")
    with pytest.raises(errors.Rejected, match="first word may be srun or mpirun"):
        mpi("rm -rf")
