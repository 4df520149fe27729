"""`kubectl logs` as users know it, through rotation and restarts, and logs that are too much: nothing lost, nothing grows."""

from __future__ import annotations

import hashlib
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.cluster import Cluster, pod
from tests.e2e.test_lifecycle import kill_kubelet, kubelet

pytestmark = pytest.mark.e2e

RUN = secrets.token_hex(2)
#: Numbered lines of 1,007 bytes, 1,053 in the file.
LINES = "yes $(head -c 1000 /dev/zero | tr '\\0' x) | head -n {count} | cat -n"
#: A gigabyte in lines of 4,000 bytes, and a last one.
GIGABYTE = "yes $(head -c 3999 /dev/zero | tr '\\0' x) | head -n 250000; echo all"
RECORD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)\n")


def numbers(text: str) -> list[int]:
    return [int(line.split()[0]) for line in text.splitlines()]


def folder(cluster: Cluster, name: str) -> str:
    uid = cluster.get("pod", name)["metadata"]["uid"]
    return f"{cluster.home}/.hpk/pods/default_{name}_{uid}/containers/main"


def memory(cluster: Cluster, host: str, pid: str) -> dict[str, int]:
    """VmRSS and VmHWM of a process in KiB."""
    text = cluster.bed.root("cat", f"/proc/{pid}/status", host=host).stdout
    return {name: int(value) for name, value in re.findall(r"(VmRSS|VmHWM):\s+(\d+)", text)}


def supervisor(cluster: Cluster, name: str) -> tuple[str, str]:
    """Host and pid of the Pod's supervisor."""
    (job,) = [job for job in cluster.queue() if job["name"] == f"default/{name}"]
    uid = cluster.get("pod", name)["metadata"]["uid"]
    found = cluster.bed.root("pgrep", "-u", cluster.user, "-f", f"python.*hpk/pod.*{uid}", host=job["host"]).stdout.split()
    return job["host"], found[0]


class Follower:
    """`kubectl logs -f` in the background."""

    def __init__(self, cluster: Cluster, *argv: str) -> None:
        words = ["env", f"KUBECONFIG={cluster.home}/.hpk/kubeconfig", "kubectl", "logs", "-f", *argv]
        self._folder = tempfile.TemporaryDirectory()
        with open(f"{self._folder.name}/out", "wb") as out:
            self.process = subprocess.Popen(cluster.bed.argv(words, user=cluster.user), stdout=out, stderr=subprocess.STDOUT)

    def text(self) -> str:
        """What it printed until now."""
        with open(f"{self._folder.name}/out") as file:
            return file.read()

    def wait(self, timeout: float = 60) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()

    def end(self) -> None:
        self._folder.cleanup()


@pytest.fixture
def follow(alice: Cluster) -> Iterator[Callable[[str], Follower]]:
    made: list[Follower] = []

    def begin(name: str) -> Follower:
        made.append(Follower(alice, name))
        return made[-1]

    yield begin
    for follower in made:
        follower.end()


@pytest.fixture
def name(alice: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a Pod that is removed afterwards."""
    found = f"logs-{re.sub('[^a-z0-9]+', '-', request.node.name)[5:40].strip('-')}-{RUN}"
    yield found
    alice.delete("pod", found, "--force", "--grace-period=0")


def test_options(alice: Cluster, name: str) -> None:
    script = "seq 1 50; echo problem >&2; sleep 6; seq 51 100; printf unfinished"
    alice.apply(pod(name, "sh", "-c", script))
    alice.wait_phase(name, "Succeeded")
    every = [str(number) for number in range(1, 101)]
    lines = alice.logs(name).splitlines()
    assert [line for line in lines if line != "problem"] == [*every, "unfinished"]
    assert "problem" in lines
    assert alice.logs(name, "--tail=3").splitlines() == ["99", "100", "unfinished"]
    assert alice.logs(name, "--tail=0") == ""
    assert alice.logs(name, "--limit-bytes=5") == "1\n2\n3"
    assert alice.logs(name, "--tail=3", "--limit-bytes=4") == "99\n1"
    stamped = alice.logs(name, "--timestamps").splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z \S+", line) for line in stamped)
    times = [line.split()[0] for line in stamped]
    assert times == sorted(times)
    moment = next(line.split()[0] for line in stamped if line.endswith(" 51"))
    assert alice.logs(name, f"--since-time={moment}").splitlines() == [*every[50:], "unfinished"]
    assert alice.logs(name, "--since=1h").splitlines() == lines
    time.sleep(1)
    assert alice.logs(name, "--since=1s") == ""
    recent = int(time.time() - time.mktime(time.strptime(moment[:19] + " UTC", "%Y-%m-%dT%H:%M:%S %Z")) + time.timezone) + 3
    assert "51" in alice.logs(name, f"--since={recent}s").splitlines()
    assert "1" not in alice.logs(name, f"--since={recent}s").splitlines()
    content = alice.run("cat", f"{folder(alice, name)}/0.log").stdout.encode()
    assert RECORD.sub(b"", content) == b""
    found = RECORD.findall(content)
    assert (b"stderr", b"F", b"problem") in found
    assert (b"stdout", b"P", b"unfinished") in found
    assert alice.logs(name, "-f").splitlines() == lines  # ends by itself


def test_previous(alice: Cluster, name: str) -> None:
    script = "n=$(cat /data/n || echo 0); echo $((n+1)) > /data/n; echo instance $n; [ $n -ge 2 ] && sleep 1000; exit 1"
    volumes = [{"name": "data", "emptyDir": {}}]
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    alice.apply(pod(name, "sh", "-c", script, restartPolicy="OnFailure", volumes=volumes, container=mounts))
    alice.wait_phase(name, "Running")
    alice.wait(lambda: alice.get("pod", name)["status"]["containerStatuses"][0]["restartCount"] == 2, 60)
    alice.wait(lambda: "instance 2" in alice.logs(name), 10)
    assert "instance 1" in alice.logs(name, "--previous")
    assert "instance 0" not in alice.logs(name, "--previous")
    kept = alice.run("ls", folder(alice, name)).stdout.split()
    assert {"1.log", "2.log"} <= set(kept)
    assert "0.log" not in kept


def test_what_is_not_there(alice: Cluster, name: str) -> None:
    alice.apply(pod(name, "true"))
    alice.wait_phase(name, "Succeeded")
    assert f'previous terminated container "main" in pod "{name}" not found' in alice.kubectl("logs", name, "--previous", check=False)
    assert "container other is not valid for pod" in alice.kubectl("logs", name, "-c", "other", check=False)
    assert "NotFound" in alice.kubectl("logs", "no-such-pod", check=False)


def test_follow_through_rotation(alice: Cluster, name: str, follow: Callable[[str], Follower]) -> None:
    """37 MB: three rotations; the files on disk stay within the bound, the follower misses nothing."""
    alice.apply(pod(name, "sh", "-c", "echo 0; sleep 3; " + LINES.format(count=35000)))
    alice.wait_phase(name, "Running", "Succeeded")
    follower = follow(name)
    assert follower.wait(60) == 0
    assert numbers(follower.text()) == list(range(35001))
    alice.wait_phase(name, "Succeeded")
    sizes = alice.run("bash", "-c", f"stat -c %s {folder(alice, name)}/0.log*").stdout.split()
    assert len(sizes) == 4
    assert max(map(int, sizes)) < 11 * 1024 * 1024
    now = numbers(alice.logs(name))  # the present file only, as upstream
    assert now == list(range(35001 - len(now), 35001))
    modes = alice.run("bash", "-c", f"stat -c %a {folder(alice, name)}/0.log*").stdout.split()
    assert set(modes) == {"600"}


def test_follow_through_the_death_of_the_kubelet(alice: Cluster, name: str, follow: Callable[[str], Follower]) -> None:
    """The stream breaks, as upstream; no line is lost, and one who follows anew sees all."""
    alice.apply(pod(name, "sh", "-c", "for n in $(seq 0 99); do echo $n; sleep 0.2; done"))
    alice.wait_phase(name, "Running")
    first = follow(name)
    alice.wait(lambda: first.text().count("\n") > 10, 20)
    kill_kubelet(alice)
    first.wait(20)
    seen = [line for line in first.text().splitlines() if line.isdigit()]  # and perhaps kubectl's complaint
    assert seen == [str(number) for number in range(len(seen))]
    alice.wait(lambda: alice.run("kubectl", "logs", name, "--tail=1", check=False).returncode == 0, 30)
    last = int(alice.logs(name, "--tail=1").strip())
    assert last < 99  # the Pod still runs, or the test shows nothing
    second = follow(name)
    assert second.wait(60) == 0
    assert numbers(second.text()) == list(range(100))


def test_a_line_of_ten_megabytes(alice: Cluster, name: str) -> None:
    size = 10 * 1000 * 1000
    alice.apply(pod(name, "sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x; echo; echo end"))
    alice.wait_phase(name, "Succeeded")
    text = alice.logs(name)
    assert hashlib.sha256(text.encode()).digest() == hashlib.sha256(b"x" * size + b"\nend\n").digest()
    assert alice.logs(name, "--tail=1") == "end\n"


@pytest.mark.timeout(120)
def test_a_gigabyte(alice: Cluster, name: str, follow: Callable[[str], Follower]) -> None:
    """Supervisor and kubelet stay small, also while somebody follows; what is on disk stays within the bound."""
    host, pid = kubelet(alice)
    before = memory(alice, host, pid)["VmRSS"]
    alice.apply(pod(name, "sh", "-c", f"sleep 2; {GIGABYTE}; sleep 1000"))
    alice.wait_phase(name, "Running")
    watched = supervisor(alice, name)
    idle = memory(alice, *watched)["VmRSS"]
    begin = time.monotonic()
    follower = follow(name)
    alice.wait(lambda: alice.logs(name, "--tail=1") == "all\n", 60)
    print(f"1 GB in {time.monotonic() - begin:.1f} s")
    most = memory(alice, *watched)["VmHWM"]
    after = memory(alice, host, pid)["VmRSS"]
    print(f"supervisor {idle} -> {most} KiB, kubelet {before} -> {after} KiB")
    assert most < 24 * 1024
    assert after - before < 24 * 1024
    used = int(alice.run("du", "-sk", folder(alice, name)).stdout.split()[0])
    assert used < 60 * 1024
    alice.delete("pod", name, "--force", "--grace-period=0")
    follower.wait(20)
