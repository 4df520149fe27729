"""hpk-wire for real: two nodes as network namespaces, Pods' namespaces and processes of an ordinary user. And its own tests."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

from tests.component import wirebed

pytestmark = pytest.mark.component

A, B, C, D = "10.200.0.1", "10.200.0.2", "10.200.0.3", "10.200.0.4"


def test_go() -> None:
    go = wirebed.go()
    if go is None:
        pytest.skip("no go here")
    done = subprocess.run([go, "test", "./..."], cwd=f"{wirebed.TREE}/wire", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, str]]:
    if reason := wirebed.missing():
        pytest.skip(reason)
    folder = tempfile.mkdtemp(prefix="hpk-wire-", dir="/tmp")
    try:
        yield wirebed.share(folder), wirebed.build(folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def bed(shared: tuple[str, str]) -> Iterator[wirebed.Bed]:
    found = wirebed.Bed(*shared)
    try:
        yield found
    finally:
        found.close()


def wait(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_pods_reach_each_other(bed: wirebed.Bed) -> None:
    one, other, third = bed.pod(0, A), bed.pod(1, B), bed.pod(0, C)
    bed.mesh()
    assert one.mtu == 1420
    for source in bed.pods:
        for target in bed.pods:
            assert source.reaches(target.address, 5), f"{source.address} to {target.address}"
    assert one.reaches(B, 5, "-s", str(one.mtu - 28), "-Mdo"), "a packet of the whole MTU"
    peers = {peer["publicKey"]: peer for peer in one.ask("listPeers")["peers"]}
    assert set(peers) == {other.key, third.key}
    assert peers[other.key]["rxBytes"] > 0
    assert peers[other.key]["lastHandshake"]
    # the Service range goes to the device too
    assert "dev ov0" in one.run(["ip", "route", "get", "10.201.3.4"])


def test_another_pods_address_is_dropped(bed: wirebed.Bed) -> None:
    """A Pod's root gives itself another Pod's address: what it sends is not let in, wherever it goes."""
    one, other, thief = bed.pod(0, A), bed.pod(1, B), bed.pod(1, C)
    bed.mesh()
    assert thief.reaches(A, 5)
    heard = one.capture("-l", "-n", "icmp", stdout=subprocess.PIPE)
    thief.run(["ip", "addr", "add", f"{B}/32", "dev", "ov0"])
    assert not thief.reaches(A, 2, "-I", B)
    assert thief.reaches(A, 2, "-I", C), "its own address is still let in"
    assert other.reaches(A, 2), "and so is the owner"
    time.sleep(0.5)
    heard.send_signal(signal.SIGINT)
    lines = heard.communicate(timeout=10)[0].decode().splitlines()
    assert sum(f"{B} > {A}" in line for line in lines) == 1, lines  # the owner's one
    assert sum(f"{C} > {A}" in line for line in lines) == 1, lines


def test_endpoint_moves(bed: wirebed.Bed) -> None:
    """A node's address changes under way; then a Pod's job begins anew on the other node with a new key."""
    one, other = bed.pod(0, A), bed.pod(1, B)
    bed.mesh()
    assert one.reaches(B, 5)
    wirebed.run(["ip", "-n", bed.nodes[1], "addr", "del", "10.77.0.2/24", "dev", "eth0"])
    wirebed.run(["ip", "-n", bed.nodes[1], "addr", "add", "10.77.0.22/24", "dev", "eth0"])
    assert not one.reaches(B, 1)
    bed.hosts[1] = "10.77.0.22"
    answer = one.ask("updatePeers", peers=[other.peer()])
    assert (answer["added"], answer["changed"]) == (0, 1)
    assert wait(3, lambda: one.reaches(B, 1)), "the new endpoint is not used"

    again = bed.pod(0, B)
    assert again.key != other.key
    one.ask("updatePeers", peers=[again.peer()])
    again.ask("setPeers", peers=[one.peer()])
    assert wait(3, lambda: one.reaches(B, 1)), "the address did not move to the new key"
    listed = {peer["publicKey"]: peer for peer in one.ask("listPeers")["peers"]}
    assert not listed[other.key]["allowedIPs"]
    assert listed[again.key]["allowedIPs"] == [f"{B}/32"]


def test_no_plaintext_between_the_nodes(bed: wirebed.Bed) -> None:
    one, other = bed.pod(0, A), bed.pod(1, B)
    bed.mesh()
    assert one.reaches(B, 5)
    captured = os.path.join(bed.folder, "wire.pcap")
    inside = os.path.join(bed.folder, "inside.pcap")
    with open(inside, "wb") as file:
        watchers = [bed.capture(0, "-U", "-w", captured), other.capture("-U", "-w", "-", stdout=file)]
    assert one.reaches(B, 5, "-p", "5e637265745e", "-c", "5", "-i", "0.2")  # ^ecret^, repeated
    time.sleep(1)
    for watcher in watchers:
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=10)
    with open(captured, "rb") as file:
        between = file.read()
    with open(inside, "rb") as file:
        assert b"^cret^^cret^" in file.read(), "the marker is not what the Pods send: this test does not test"
    assert b"^cret^" not in between
    assert between.count(bytes(map(int, A.split(".")))) == 0, "not even the Pods' addresses are seen"
    assert len(between) > 10 * 100


def test_end_of_the_supervisor_ends_it(bed: wirebed.Bed) -> None:
    """By closing the control socket, and by kill -9; Slurm's SIGTERM alone does not."""
    one, other = bed.pod(0, A), bed.pod(1, B)
    bed.mesh()
    os.kill(one.wire, signal.SIGTERM)
    os.kill(one.wire, signal.SIGINT)
    assert one.reaches(B, 5)
    one.tell("close")
    assert wait(5, lambda: gone(one.wire))
    assert not one.reaches(B, 1)
    one.tell("restart")
    first = one.key
    one.on_ready(one.read())
    assert one.key != first, "each start makes a key"
    bed.mesh()
    assert one.reaches(B, 5), "the device has survived"
    other.process.kill()
    assert wait(5, lambda: gone(other.wire))


def test_crash_is_told(bed: wirebed.Bed) -> None:
    one, other = bed.pod(0, A), bed.pod(1, B)
    os.kill(one.wire, signal.SIGKILL)
    assert one.read() == {"type": "end", "problem": "hpk-wire has ended with exit code 137"}
    one.tell("restart")
    one.on_ready(one.read())
    bed.mesh()
    assert one.reaches(B, 5)
    other.run(["ip", "link", "del", "ov0"])
    assert other.read()["type"] == "end"
    assert "network device ov0 is gone" in other.said()


def test_key_stays_in_the_process(bed: wirebed.Bed) -> None:
    one = bed.pod(0, A)
    with open(f"/proc/{one.wire}/cmdline", "rb") as file:
        assert file.read().split(b"\0")[1::2][0] == b"-tun-fd"
    with open(f"/proc/{one.wire}/environ", "rb") as file:
        assert file.read() == b""
    # another process of the same user, as a container's is, cannot look into its memory
    peek = ["setpriv", f"--reuid={wirebed.UID}", f"--regid={wirebed.UID}", "--clear-groups", "dd", f"if=/proc/{one.wire}/mem", "count=0"]
    assert "Permission denied" in subprocess.run(peek, capture_output=True, text=True, check=False).stderr


def test_flood_takes_no_memory(bed: wirebed.Bed) -> None:
    """Garbage, and handshakes that nobody asked for, as fast as this machine sends them: the Pod still is reached, and stays small."""
    one, _other = bed.pod(0, A), bed.pod(1, B)
    bed.mesh()
    assert one.reaches(B, 5)
    flood = """
import os, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((%r, %d))
end = time.monotonic() + 4
kinds = {1: 144, 2: 88, 3: 60, 4: 1300}  # initiation, response, cookie, data
packets = [b"", os.urandom(1400)] + [bytes([kind, 0, 0, 0]) + os.urandom(size) for kind, size in kinds.items()]
sent = 0
while time.monotonic() < end:
    for packet in packets:
        try:
            s.send(packet); sent += 1
        except OSError:
            pass
print(sent)
"""
    sender = bed.spawn(1, [wirebed.PYTHON, "-c", flood % (bed.hosts[0], one.port)], stdout=subprocess.PIPE)
    time.sleep(1)
    sent = int(sender.stdout.read())
    assert sent > 10000
    assert wait(5, lambda: one.reaches(B, 1))
    assert one.memory("VmHWM") < 40, "the flood is kept"
    assert one.ask("stats")["dropped"] > 1000


def test_thousand_peers(bed: wirebed.Bed) -> None:
    one, other = bed.pod(0, A), bed.pod(1, B)
    bed.mesh()
    assert one.memory() < 15, "idle"
    peers = [other.peer()]
    for number in range(1000):
        key = base64.b64encode(number.to_bytes(31, "big") + b"\1").decode()
        peers.append(
            {"publicKey": key, "endpoint": f"10.77.0.9:{number + 1}", "allowedIPs": [f"10.200.{number // 250 + 1}.{number % 250}/32"]}
        )
    begun = time.monotonic()
    assert one.ask("setPeers", peers=peers)["added"] == 1000
    assert time.monotonic() - begun < 10
    assert one.ask("setPeers", peers=peers) == {"id": 3, "type": "done", "added": 0, "changed": 0, "removed": 0}
    assert one.memory() < 64
    assert one.reaches(B, 5)
    assert one.ask("setPeers", peers=[other.peer()])["removed"] == 1000


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "standard input: expected the supervisor's socket"),
        (["-mtu", "70000"], "-mtu 70000: expected 576 to 65000"),
        (["-ports", "9-3"], "-ports 9-3: expected LOW-HIGH"),
        (["x"], "takes no arguments"),
        (["-tun-fd", "0"], "-tun-fd 0: not a TUN device"),
    ],
)
def test_wrong_start(shared: tuple[str, str], argv: list[str], words: str) -> None:
    """By hand, say: one line that tells what is wrong."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stdin = theirs if "-tun-fd" in argv else subprocess.DEVNULL
        done = subprocess.run([shared[1], *argv], stdin=stdin, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
