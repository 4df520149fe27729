"""Usage: python -m tests.bench.wire [--rounds N] [--seconds N]. Prints Markdown, the form of docs/network-wire.md.

The Pods' network between two nodes. Both nodes, with all their processes, are on this machine (tests/component/wirebed.py), so the
figures are for comparison with each other. Needs root, iperf3 and slirp4netns.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.component import wirebed

STREAMS = (1, 4)
ECHO_PORT = 5202
_ECHO = f"""
import socket
server = socket.create_server(("", {ECHO_PORT}))
while True:
    with server.accept()[0] as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := peer.recv(1):
            peer.send(data)
"""
_ROUND_TRIPS = f"""
import socket, statistics, sys, time
times = []
with socket.create_connection((sys.argv[1], {ECHO_PORT})) as peer:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(400):
        begun = time.perf_counter()
        peer.send(b"x")
        peer.recv(1)
        times.append(time.perf_counter() - begun)
        time.sleep(0.002)
print(statistics.median(times) * 1000)
"""


class Bench:
    def __init__(self, bed: wirebed.Bed, seconds: int) -> None:
        self.bed, self.seconds = bed, seconds
        self.source, self.target = bed.pod(0, "10.200.0.1"), bed.pod(1, "10.200.0.2")
        self.idle = [self.source.memory(), self.target.memory()]
        bed.mesh()
        assert self.source.reaches("10.200.0.2", 10)
        for where in (bed.on_node(1, []), self.target.enter([])):
            bed.started.append(subprocess.Popen([*where, "iperf3", "-s"], stdout=subprocess.DEVNULL))
            bed.started.append(subprocess.Popen([*where, wirebed.PYTHON, "-c", _ECHO]))
        # from the Pod to the other node, as egress to the site goes
        slirp = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", str(self.source.pid), "tap0"]
        bed.spawn(0, [*wirebed.AS_USER, *slirp], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(2)
        self.source.run(["ip", "link", "show", "tap0"])
        self.paths: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
            "raw veth, node to node": (lambda argv: bed.on_node(0, argv), bed.hosts[1]),
            "slirp4netns, Pod to node": (self.source.enter, bed.hosts[1]),
            "hpk-wire, Pod to Pod": (self.source.enter, "10.200.0.2"),
        }
        self.per_gbit: list[float] = []

    def processor(self) -> float:
        return self.source.processor() + self.target.processor()

    def throughput(self, path: str, streams: int) -> float:
        """Gbit/s as received."""
        where, address = self.paths[path]
        before = self.processor()
        found = wirebed.run(where(["iperf3", "-J", "-c", address, "-t", str(self.seconds), "-P", str(streams)]))
        answer = json.loads(found)
        if "error" in answer:
            raise RuntimeError(f"{path}, {streams} streams: {answer['error']}")
        received = answer["end"]["sum_received"]
        if path.startswith("hpk-wire"):
            self.per_gbit.append((self.processor() - before) / (received["bytes"] * 8e-9))
        return float(received["bits_per_second"]) / 1e9

    def latency(self, path: str) -> float:
        """Median of 400 round trips of one byte over TCP, in ms."""
        where, address = self.paths[path]
        return float(wirebed.run(where([wirebed.PYTHON, "-c", _ROUND_TRIPS, address])))

    def thousand(self) -> tuple[float, float]:
        """Milliseconds for 1,000 more peers in one message, and the memory afterwards in MB."""
        peers = [self.target.peer()]
        for number in range(1000):
            key = base64.b64encode(number.to_bytes(31, "big") + b"\1").decode()
            peers.append(
                {"publicKey": key, "endpoint": f"10.77.0.9:{number + 1}", "allowedIPs": [f"10.200.{number // 250 + 1}.{number % 250}/32"]}
            )
        begun = time.monotonic()
        assert self.source.ask("setPeers", peers=peers)["added"] == 1000
        return (time.monotonic() - begun) * 1000, self.source.memory()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.wire", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each throughput measurement")
    args = parser.parse_args()
    if reason := wirebed.missing() or next((f"no {name} here" for name in ("iperf3", "slirp4netns") if not shutil.which(name)), ""):
        sys.stderr.write(f"tests.bench.wire: {reason}\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="hpk-wire-", dir="/tmp") as folder:
        wirebed.share(folder)
        program = wirebed.build(folder)
        bed = wirebed.Bed(folder, program)
        try:
            bench = Bench(bed, args.seconds)
            rates = {(path, streams): [] for path in bench.paths for streams in STREAMS}
            for _ in range(args.rounds):
                for path, streams in rates:
                    rates[path, streams].append(bench.throughput(path, streams))
            print("| path | TCP, 1 stream, Gbit/s | 4 streams | round trip, ms |\n| --- | --- | --- | --- |")
            for path in bench.paths:
                medians = [f"{statistics.median(rates[path, streams]):.2f}" for streams in STREAMS]
                print(f"| {path} | {' | '.join(medians)} | {bench.latency(path):.2f} |")
            print(f"\nprogram: {os.path.getsize(program) / 1e6:.1f} MB")
            print(f"device made in {bench.source.tun_ms:.0f} ms, process ready in {bench.source.start_ms:.0f} ms")
            print(f"memory: idle {max(bench.idle):.1f} MB", end="")
            print(f", at most {bench.source.memory('VmHWM'):.1f} MB sending, {bench.target.memory('VmHWM'):.1f} MB receiving")
            print(f"processor time of both ends' hpk-wire: {statistics.median(bench.per_gbit):.2f} s per Gbit")
            print("1,000 peers more: {:.0f} ms, {:.1f} MB".format(*bench.thousand()))
            print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        finally:
            bed.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
