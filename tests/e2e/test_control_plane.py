"""The control plane's own life on the test bed: from node to node, killed in every way, asked for names. In state directories of
its own, so that the other tests' clusters are left alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import wait_for
from tests.testbed import Bed

pytestmark = pytest.mark.e2e

ASK_DNS = """
import json, os, socket, ssl, struct, sys
home = os.environ["HPK_HOME"]
dns = json.load(open(home + "/run/cluster.json"))["dns"]
context = ssl.create_default_context(cafile=home + "/pki/ca.crt")
if sys.argv[2:]:
    context.load_cert_chain(home + "/pki/admin.crt", home + "/pki/admin.key")
sock = context.wrap_socket(socket.create_connection((dns["address"], dns["port"])), server_hostname="localhost")
name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split("."))
message = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + name + b"\\0" + struct.pack(">HH", 1, 1)
sock.sendall(struct.pack(">H", len(message)) + message)
answer = sock.recv(struct.unpack(">H", sock.recv(2))[0])
print(socket.inet_ntoa(answer[-4:]))
"""


class Own:
    """A state directory of alice's beside the usual one."""

    def __init__(self, bed: Bed, name: str) -> None:
        self.bed = bed
        self.home = f"/home/alice/{name}"

    def run(self, *argv: str, host: str = "login", check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        own = f"HPK_HOME={self.home}", f"KUBECONFIG={self.home}/kubeconfig"
        return self.bed.run("env", *own, *argv, host=host, check=check, timeout=timeout)

    def report(self) -> dict:
        return json.loads(self.run("cat", f"{self.home}/run/cluster.json").stdout)

    def processes(self, host: str) -> list[str]:
        """What runs of this control plane on the host."""
        lines = self.bed.run("ps", "-u", "alice", "-o", "args=", host=host, check=False).stdout.splitlines()
        return [line for line in lines if self.home in line or "Apptainer runtime" in line or "squashfuse" in line]


@pytest.fixture
def own(bed: Bed, request: pytest.FixtureRequest) -> Iterator[Own]:
    it = Own(bed, f"own-{request.node.name}".replace("_", "-").replace("[", "-").rstrip("]"))
    it.run("rm", "-rf", it.home)
    yield it
    it.run("hpk", "down", check=False)


def test_goes_on_on_another_node(own: Own) -> None:
    said = own.run("hpk", "up", "--", "--nodelist=c1").stdout
    assert [line.split()[1] for line in said.splitlines() if line[:1] == "✓"][:4] == ["submitted:", "job", "certificates", "etcd"]
    assert said.splitlines()[-1] == f"export KUBECONFIG={own.home}/kubeconfig"
    own.run("kubectl", "create", "configmap", "kept", "--from-literal=a=b")
    authority = own.run("cat", f"{own.home}/pki/ca.crt").stdout
    assert "Ready" in own.run("hpk", "status").stdout
    again = own.run("hpk", "up").stdout.splitlines()
    assert again[0].split()[3:6] == ["is", "there", "already"]
    own.run("hpk", "down")
    status = own.run("hpk", "status", check=False)
    assert status.returncode == 3
    assert "not running (last: job" in status.stdout
    own.run("hpk", "up", "--", "--nodelist=c2")
    assert own.report()["host"] == "c2"
    assert own.run("kubectl", "get", "configmap", "kept", "-o", "jsonpath={.data.a}").stdout == "b"
    assert own.run("cat", f"{own.home}/pki/ca.crt").stdout == authority


def test_names_are_answered_for_the_owner_alone(own: Own) -> None:
    own.run("hpk", "up", "--", "--nodelist=c1")
    ask = ["python3", "-c", ASK_DNS, "kubernetes.default.svc.cluster.local"]
    assert own.run(*ask, "with key", host="c1").stdout.strip() == "10.96.0.1"
    assert own.run(*ask, host="c1", check=False).returncode != 0


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_nothing_is_left_where_slurm_does_not_clean_up(own: Own, signal: str) -> None:
    """Run by hand, outside Slurm, and ended in order or killed outright."""
    before = len(own.processes("c2"))
    script = f"setsid -f hpk control-plane > {own.home}.out 2>&1 < /dev/null"
    own.run("bash", "-c", script, host="c2")
    wait_for(lambda: "export KUBECONFIG=" in own.run("cat", f"{own.home}.out").stdout, 60, lambda: own.run("cat", f"{own.home}.out").stdout)
    assert "process" in own.run("hpk", "status").stdout
    # a second one over the same state, also from another node
    for host in ("c1", "c2"):
        second = own.run("hpk", "control-plane", host=host, check=False)
        assert second.returncode == 1
        assert "in use by the control plane of process" in second.stderr
    # a part killed by hand comes back, and of the killed one nothing stays
    report = own.report()
    own.run("kill", "-KILL", str(report["components"]["kube-controller-manager"]["pid"]), host="c2")
    wait_for(lambda: own.report()["components"]["kube-controller-manager"]["restarts"] == 1, 30)
    wait_for(lambda: own.report()["components"]["kube-controller-manager"]["phase"] == "ready", 30)
    assert len([line for line in own.processes("c2") if "squashfuse" in line]) - before <= 4
    own.run("kill", f"-{signal}", str(report["pid"]), host="c2")
    wait_for(lambda: len(own.processes("c2")) <= before, 30, lambda: "\n".join(own.processes("c2")))


def test_node_dies(own: Own) -> None:
    """Power failure of the control plane's node: the next start, on another one, has what was acknowledged."""
    own.run("hpk", "up", "--", "--nodelist=c2", "--no-requeue")
    own.run("kubectl", "create", "configmap", "kept", "--from-literal=a=b")
    own.bed.kill_host("c2")
    try:
        job = own.report()["jobID"]
        wait_for(lambda: own.bed.run("squeue", "-h", "-j", job, "-t", "running", check=False).stdout == "", 90)
        own.run("hpk", "up", "--", "--nodelist=c1")
        assert own.run("kubectl", "get", "configmap", "kept", "-o", "jsonpath={.data.a}").stdout == "b"
    finally:
        own.bed.start_host("c2")
