"""Two "nodes" joined by a veth pair, in network namespaces, and Pods on them as an ordinary user.

For test_wire.py and tests/bench/wire.py.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from typing import Any

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: An ordinary user: nobody.
UID = 65534
AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
#: The system's interpreter, since the tests' own may lie where other users cannot go.
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


def missing() -> str:
    """Why the network cannot be tried here; "" when it can."""
    for name in ("go", "ip", "ping", "setpriv", "nsenter", "tcpdump"):
        if not go() if name == "go" else not shutil.which(name):
            return f"no {name} here"
    if os.geteuid() != 0:
        return "making the nodes' network namespaces needs root"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    if not os.stat("/dev/net/tun").st_mode & 0o006:
        return "/dev/net/tun: not for ordinary users (chmod 0666)"
    return ""


def go() -> str | None:
    return shutil.which("go", path=os.environ["PATH"] + ":/usr/local/go/bin")


def build(folder: str) -> str:
    """Build hpk-wire into ``folder``, which everybody may enter; return its path."""
    path = os.path.join(folder, "hpk-wire")
    run([go() or "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "."], cwd=f"{TREE}/wire", env={**os.environ, "CGO_ENABLED": "0"})
    os.chmod(path, 0o755)
    return path


def share(folder: str) -> str:
    """Copy what runs in the job to ``folder``, so that an ordinary user can read it wherever the source tree is."""
    os.chmod(folder, 0o755)
    for name in ("hpk", "tests/component/wire_end.py"):
        source, target = os.path.join(TREE, name), os.path.join(folder, os.path.basename(name))
        if os.path.isdir(source):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def run(argv: list[str], **options: Any) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


class Pod:
    """One Pod's end (wire_end.py) on a node."""

    def __init__(self, bed: Bed, node: int, address: str, mtu: int = 0) -> None:
        self.bed, self.address, self.node = bed, address, node
        self.errors = open(os.path.join(bed.folder, f"{address}.err"), "wb")  # noqa: SIM115
        argv = ["ip", "netns", "exec", bed.nodes[node], *AS_USER]
        argv += [PYTHON, "-I", "-S", f"{bed.folder}/wire_end.py", bed.folder, bed.program, f"{address}/16", bed.hosts[node]]
        if mtu:
            argv.append(str(mtu))
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self._input = b""
        first = self.read()
        self.pid, self.tun_ms = first["pid"], first["tun"]
        self.on_ready(self.read())

    def on_ready(self, ready: dict[str, Any]) -> None:
        assert ready["type"] == "ready", ready
        self.key, self.port, self.mtu, self.wire, self.start_ms = (ready[n] for n in ("publicKey", "port", "mtu", "wire", "start"))

    def read(self, seconds: float = 20) -> dict[str, Any]:
        """The next line that it prints."""
        assert self.process.stdout
        end = time.monotonic() + seconds
        while b"\n" not in self._input:
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{self.address}: no answer")
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise EOFError(self.said())
            self._input += data
        line, self._input = self._input.split(b"\n", 1)
        return dict(json.loads(line))

    def said(self) -> str:
        with open(self.errors.name) as file:
            return file.read()

    def tell(self, kind: str, **fields: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"type": kind, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.tell(kind, **fields)
        return self.read()

    def peer(self, **other: Any) -> dict[str, Any]:
        """This Pod as others name it."""
        endpoint = f"{self.bed.hosts[self.node]}:{self.port}"
        return {"publicKey": self.key, "endpoint": endpoint, "allowedIPs": [f"{self.address}/32"], **other}

    def enter(self, argv: list[str]) -> list[str]:
        return [*AS_USER, "nsenter", f"--target={self.pid}", "--user", "--net", "--preserve-credentials", "--", *argv]

    def run(self, argv: list[str], **options: Any) -> str:
        return run(self.enter(argv), **options)

    def spawn(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self.enter(argv), **options)
        self.bed.started.append(process)
        return process

    def capture(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """tcpdump on the Pod's device, as root; returns when it listens."""
        command = ["nsenter", f"--target={self.pid}", "--net", "--", "tcpdump", "-i", "ov0", *argv]
        return self.bed.listening(command, **options)

    def reaches(self, address: str, seconds: int = 1, *options: str) -> bool:
        argv = self.enter(["ping", "-c1", f"-W{seconds}", *options, address])
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def memory(self, field: str = "VmRSS") -> float:
        """Resident memory of hpk-wire in MB (VmHWM: the most it had)."""
        with open(f"/proc/{self.wire}/status") as file:
            return next(int(line.split()[1]) / 1000 for line in file if line.startswith(f"{field}:"))

    def processor(self) -> float:
        """Seconds of processor time that hpk-wire has used."""
        with open(f"/proc/{self.wire}/stat") as file:
            words = file.read().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream:
                stream.close()


class Bed:
    """``folder`` can be entered by everybody and has what share() and build() put there."""

    def __init__(self, folder: str, program: str, mtu: int = 1500) -> None:
        self.folder, self.program = folder, program
        name = f"hpkw{secrets.token_hex(3)}"
        self.nodes = [f"{name}a", f"{name}b"]
        self.hosts = ["10.77.0.1", "10.77.0.2"]
        self.pods: list[Pod] = []
        self.started: list[subprocess.Popen[bytes]] = []
        for node in self.nodes:
            run(["ip", "netns", "add", node])
        run(["ip", "link", "add", "eth0", "netns", self.nodes[0], "type", "veth", "peer", "name", "eth0", "netns", self.nodes[1]])
        for node, host in zip(self.nodes, self.hosts, strict=True):
            run(["ip", "-n", node, "addr", "add", f"{host}/24", "dev", "eth0"])
            run(["ip", "-n", node, "link", "set", "eth0", "mtu", str(mtu), "up"])
            run(["ip", "-n", node, "link", "set", "lo", "up"])

    def pod(self, node: int, address: str, mtu: int = 0) -> Pod:
        self.pods.append(Pod(self, node, address, mtu))
        return self.pods[-1]

    def on_node(self, node: int, argv: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.nodes[node], *argv]

    def spawn(self, node: int, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self.on_node(node, argv), **options)
        self.started.append(process)
        return process

    def capture(self, node: int, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """tcpdump between the nodes; returns when it listens."""
        return self.listening(self.on_node(node, ["tcpdump", "-i", "eth0", *argv]), **options)

    def listening(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
        self.started.append(process)
        assert process.stderr
        while b"listening on" not in (line := process.stderr.readline()):
            if not line:
                raise RuntimeError(f"{' '.join(command)}: it does not start")
        return process

    def mesh(self) -> None:
        """Tell each Pod of all, as the kubelet will: one list for everybody."""
        everybody = [pod.peer() for pod in self.pods]
        for pod in self.pods:
            answer = pod.ask("setPeers", peers=everybody)
            assert answer["type"] == "done", answer

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        for pod in self.pods:
            pod.end()
        for node in self.nodes:
            subprocess.run(["ip", "netns", "del", node], check=False, capture_output=True)
