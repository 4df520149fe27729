"""One Pod's end of the network, run as an ordinary user on a "node": what the supervisor does, without the containers.

    python3 -I -S wire_end.py TREE PROGRAM ADDRESS/BITS HOST_IP [MTU]

Prints {"type": "sandbox", "pid": of a process in the Pod's namespaces, "tun": milliseconds}, then what hpk-wire says. Requests are
read from standard input, as wire/control.go has them, and their answers printed. "restart" starts hpk-wire anew on the same device.
"""

import json
import os
import signal
import sys
import time

sys.path.insert(0, sys.argv[1])

from hpk import sandbox
from hpk.network import tun
from hpk.pod import loop, wire


class End:
    def __init__(self, program: str, address: str, mtu: int) -> None:
        begun = time.monotonic()
        self.loop = loop.Loop()
        self.box = sandbox.create(["user", "net", "ipc", "uts"])
        self.fd = tun.make(self.box, "ov0", address, mtu, ("10.201.0.0/16",))
        made = (time.monotonic() - begun) * 1000
        self.pause = os.fork()
        if self.pause == 0:
            sandbox.enter(self.box)
            sandbox.die_with_parent(signal.SIGKILL, os.getppid())
            while True:
                signal.pause()
        self.say({"type": "sandbox", "pid": self.pause, "tun": made})
        self.started = time.monotonic()
        self.wire = wire.Wire(
            self.loop, program, self.fd, mtu, self.on_ready, lambda problem: self.say({"type": "end", "problem": problem})
        )

    def say(self, value: dict) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def on_ready(self, facts: dict) -> None:
        self.say({"type": "ready", "wire": self.wire.pid, "start": (time.monotonic() - self.started) * 1000, **facts})

    def on_input(self, _: int) -> None:
        data = b""
        while not data.endswith(b"\n"):
            chunk = os.read(0, 1 << 20)
            if not chunk:
                self.loop.stop()
                return
            data += chunk
        for line in data.splitlines():
            asked = json.loads(line)
            kind = asked.pop("type")
            if kind == "restart":
                self.started = time.monotonic()
                self.wire.start()
            elif kind == "close":
                self.wire.close()
            else:
                self.wire.request(kind, self.say, **asked)

    def on_child(self, _: int) -> None:
        os.read(self.children, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.wire.exited(pid, status)

    def run(self) -> None:
        self.children, write = os.pipe()
        os.set_blocking(self.children, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.loop.watch(self.children, loop.READ, self.on_child)
        self.loop.watch(0, loop.READ, self.on_input)
        self.wire.start()
        self.loop.run()


End(sys.argv[2], sys.argv[3], int(sys.argv[5]) if len(sys.argv) > 5 else tun.mtu(sys.argv[4])).run()
