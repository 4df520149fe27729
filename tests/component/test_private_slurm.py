"""`hpk slurm` with real slurmctld, slurmd and munged, as two ordinary users of this machine. Root, to become them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from tests.testbed import layout, site, users

pytestmark = pytest.mark.component
TREE = pathlib.Path(layout.TREE)
PYTHON = f"{layout.CACHE}/venv/bin/python"
DAEMONS = ("munged", "slurmctld", "slurmd")


class Home:
    """A user with a state directory and a private Slurm in it."""

    def __init__(self, user: str, root: pathlib.Path, package: pathlib.Path) -> None:
        self.user = user
        self.root = root
        self.slurm = root / "slurm" / socket.gethostname().split(".")[0]
        self._env = [f"HOME={root.parent}", f"USER={user}", f"LOGNAME={user}", f"HPK_HOME={root}", f"PYTHONPATH={package}"]

    def run(self, *argv: str, prefix: tuple[str, ...] = (), check: bool = True, conf: bool = True) -> subprocess.CompletedProcess[str]:
        env = [*self._env, "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"]
        env += [f"SLURM_CONF={self.slurm}/etc/slurm.conf"] if conf else []
        line = [*prefix, "runuser", "-u", self.user, "--", "env", "-i", f"--chdir={self.root.parent}", *env, *argv]
        done = subprocess.run(line, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    def hpk(self, *words: str, check: bool = True, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return self.run(PYTHON, "-m", "hpk", *words, check=check, conf=False, prefix=prefix)

    def pid(self, daemon: str) -> int:
        return int((self.slurm / "run" / f"{daemon}.pid").read_text())

    def submit(self, *flags: str, command: str = "sleep 300") -> str:
        return self.run("sbatch", "--parsable", "--output=%j.out", *flags, f"--wrap={command}").stdout.strip()

    def state(self, job: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").stdout.strip()

    def wait_state(self, job: str, *states: str, seconds: float = 30) -> str:
        return until(lambda: (found := self.state(job)) in states and found, seconds)

    def output(self, job: str) -> str:
        return (self.root.parent / f"{job}.out").read_text()

    def processes(self) -> list[int]:
        """Live processes that belong to this Slurm."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                mine = pathlib.Path(f"/proc/{name}").owner() == self.user
                if mine and (str(self.slurm) in words or words.startswith(("slurmstepd:", ": slurmscriptd"))):
                    found.append(int(name))
        return found


def until(check: Callable[[], object], seconds: float = 15) -> object:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return found


def listening(pids: list[int]) -> set[str]:
    """Addresses at which these processes listen, as ss(8) sees it."""
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [line for line in lines if any(f"pid={pid}," in line for pid in pids)]
    return {line.split()[3].rpartition(":")[0] for line in mine}


@pytest.fixture(scope="module")
def package() -> Iterator[pathlib.Path]:
    """Copy of the hpk package that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(TREE / "hpk", f"{folder}/hpk", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield pathlib.Path(folder)


@pytest.fixture(scope="module")
def make_home(package: pathlib.Path) -> Iterator[Callable[..., Home]]:
    if os.geteuid() != 0:
        pytest.skip("only root can become other users")
    if not shutil.which("slurmctld"):
        pytest.skip("slurmctld is not installed: python -m tests.testbed packages")
    users.ensure()
    site.python_environment()
    homes: list[Home] = []
    with tempfile.TemporaryDirectory(prefix="hpk-") as folder:
        os.chmod(folder, 0o755)

        def make(user: str, name: str = "") -> Home:
            home = pathlib.Path(folder, name or user)
            home.mkdir(mode=0o700)
            shutil.chown(home, user, user)
            homes.append(Home(user, home / ".hpk", package))
            return homes[-1]

        yield make
        for home in homes:
            home.hpk("slurm", "down", "--cancel", check=False)
            for pid in home.processes():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def alice(make_home: Callable[..., Home]) -> Home:
    home = make_home("alice")
    home.hpk("slurm", "up")
    return home


def test_up_gives_a_node_that_takes_jobs(alice: Home) -> None:
    said = alice.hpk("slurm", "env").stdout
    assert said == f"export SLURM_CONF={alice.slurm}/etc/slurm.conf\n"
    job = alice.submit("--cpus-per-task=8", "--export=NONE", command="echo $SLURM_CONF; id -un")
    alice.wait_state(job, "COMPLETED")
    assert alice.output(job) == f"{alice.slurm}/etc/slurm.conf\nalice\n"
    assert "1 CPUs" not in alice.hpk("slurm", "status").stdout


def test_files_are_private(alice: Home) -> None:
    assert alice.slurm.stat().st_mode & 0o777 == 0o700
    assert (alice.slurm / "munge.key").stat().st_mode & 0o777 == 0o600
    stranger = ["runuser", "-u", "bob", "--", "cat", str(alice.slurm / "munge.key")]
    assert subprocess.run(stranger, capture_output=True).returncode != 0


def test_two_users_at_once_and_only_on_loopback(alice: Home, make_home: Callable[..., Home]) -> None:
    bob = make_home("bob")
    bob.hpk("slurm", "up", "--cpus=3")
    assert bob.run("sinfo", "-h", "-o", "%c").stdout.strip() == "3"
    jobs = [(home, home.submit(command="srun id -un")) for home in (alice, bob)]
    for home, job in jobs:
        home.wait_state(job, "COMPLETED")
        assert home.output(job) == f"{home.user}\n"
    pids = [home.pid(daemon) for home in (alice, bob) for daemon in DAEMONS]
    found = listening(pids)
    assert found
    assert all(address.startswith("127.") for address in found)
    bob.hpk("slurm", "down")
    assert not bob.processes()
    assert alice.run("sinfo", "-h", "-o", "%T").stdout.strip() == "idle"


def test_up_again_adopts_what_runs_and_starts_what_died(alice: Home) -> None:
    job = alice.submit()
    alice.wait_state(job, "RUNNING")
    before = [alice.pid(daemon) for daemon in DAEMONS]
    assert "it runs already" in alice.hpk("slurm", "up").stdout
    assert [alice.pid(daemon) for daemon in DAEMONS] == before
    os.kill(alice.pid("slurmd"), signal.SIGKILL)
    os.kill(alice.pid("munged"), signal.SIGKILL)
    os.kill(alice.pid("slurmctld"), signal.SIGTERM)  # a killed slurmctld forgets what it did in the last seconds
    until(lambda: not os.path.exists(alice.slurm / "run/slurmctld.pid"))
    assert alice.hpk("slurm", "status", check=False).returncode == 1
    assert "started munged, slurmctld, slurmd" in alice.hpk("slurm", "up").stdout
    assert alice.state(job) == "RUNNING"
    ports = (alice.slurm / "settings.json").read_text()
    refused = alice.hpk("slurm", "up", "--cpus=5", check=False)
    assert "--cpus: the node's CPUs (" in refused.stderr
    assert (alice.slurm / "settings.json").read_text() == ports
    alice.run("scancel", job)
    alice.wait_state(job, "CANCELLED")


def test_down_asks_before_it_ends_jobs(alice: Home) -> None:
    job = alice.submit()
    alice.wait_state(job, "RUNNING")
    refused = alice.hpk("slurm", "down", check=False)
    assert refused.returncode == 1
    assert f"1 jobs run in it ({job})" in refused.stderr
    alice.hpk("slurm", "down", "--cancel")
    assert not alice.processes()
    alice.hpk("slurm", "up")
    assert alice.state(job) == "CANCELLED"


def test_jobs_of_a_machine_that_lost_power_end(alice: Home) -> None:
    lost, again = alice.submit("--no-requeue"), alice.submit("--requeue")
    for job in (lost, again):
        alice.wait_state(job, "RUNNING")
    # slurmctld writes its state some seconds later; a clean stop writes it at once
    os.kill(alice.pid("slurmctld"), signal.SIGTERM)
    until(lambda: not os.path.exists(alice.slurm / "run/slurmctld.pid"))
    for pid in alice.processes():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not alice.processes())
    alice.hpk("slurm", "up")
    alice.wait_state(lost, "NODE_FAIL")
    alice.wait_state(again, "RUNNING", seconds=60)
    alice.run("scancel", again)


def test_a_job_that_outgrows_its_memory_is_killed(alice: Home) -> None:
    job = alice.submit("--mem=50", command=f"exec {PYTHON} -c 'import time; x = bytearray(300 << 20); time.sleep(60)'")
    alice.wait_state(job, "FAILED", "OUT_OF_MEMORY", "CANCELLED", seconds=40)
    assert re.search(r"exceeded memory limit", alice.output(job))


def test_a_host_name_that_is_a_network_address(make_home: Callable[..., Home], tmp_path: pathlib.Path) -> None:
    """Slurm binds to the address of the host name, which on most machines of a site is not loopback."""
    nobody = make_home("bob", "bob-elsewhere")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n192.0.2.77 {socket.gethostname()}\n")
    hosts.chmod(0o644)
    inside = ("unshare", "--mount", "bash", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "bash")
    nobody.hpk("slurm", "up", prefix=inside)
    assert listening([nobody.pid(daemon) for daemon in DAEMONS]) == {"127.0.0.1"}
    assert nobody.hpk("slurm", "env").stdout == f"export SLURM_CONF={nobody.slurm}/etc/client.conf\n"
    job = nobody.submit(command="srun hostname; getent hosts $(hostname)")
    nobody.wait_state(job, "COMPLETED")
    name = socket.gethostname()
    assert nobody.output(job).split() == [name, "127.0.0.1", "localhost", name]
    nobody.hpk("slurm", "down", prefix=inside)
    assert not nobody.processes()
