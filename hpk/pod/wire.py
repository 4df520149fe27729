"""The supervisor's end of hpk-wire (wire/ in the source tree), the process that carries the Pod's packets between the nodes.

It gets the Pod's TUN device as an open descriptor (hpk/network/tun.py) and one end of a socket pair as standard input. The other
end is here: lines of JSON, described in wire/control.go. When it closes, however the supervisor ends, hpk-wire ends.
"""

from __future__ import annotations

import json
import os
import socket

from hpk.pod import loop, processes, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Version of the control socket's language.
VERSION = 1


class Wire:
    """``program`` is the path of hpk-wire, ``tun`` the device's descriptor, which stays open here, so that it survives a restart of the
    process; ``ports`` is LOW-HIGH or empty.

    ``on_ready(facts)`` gets publicKey (a new one at each start), port and mtu. ``on_end(problem)`` is called when the process ends
    by itself; start() may then be called again.
    """

    def __init__(
        self,
        looper: loop.Loop,
        program: str,
        tun: int,
        mtu: int,
        on_ready: Callable[[dict[str, Any]], None],
        on_end: Callable[[str], None],
        ports: str = "",
    ) -> None:
        self._loop = looper
        self._argv = [program, "-tun-fd", str(tun), "-mtu", str(mtu), *(["-ports", ports] if ports else [])]
        self._tun = tun
        self._on_ready = on_ready
        self._on_end = on_end
        self._socket: socket.socket | None = None
        self._input = b""
        self._output = b""
        self._answers: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._last_id = 0
        self.pid = 0

    def start(self) -> None:
        """Start the process. What keeps it from starting is told by on_end()."""
        ours, theirs = socket.socketpair()
        with theirs:
            stdio = (theirs.fileno(), 1, 2)
            self.pid, problem = processes.fork_exec(self._argv, {}, stdio, lambda _: os.set_inheritable(self._tun, True))
        if problem:
            words.say(f"network: {problem}")  # its end follows as that of any other process
        ours.setblocking(False)
        self._socket = ours
        self._loop.watch(ours.fileno(), loop.READ, self._ready)

    def request(self, kind: str, done: Callable[[dict[str, Any]], None] | None = None, **fields: Any) -> None:
        """Send a request (wire/control.go); ``done(answer)`` gets the answer, of type error if it was refused.

        It is lost, and done() never called, when the process ends before it has answered.
        """
        if self._socket is None:
            return
        self._last_id += 1
        if done is not None:
            self._answers[self._last_id] = done
        line = json.dumps({"id": self._last_id, "type": kind, **fields}, separators=(",", ":"))
        self._output += line.encode() + b"\n"
        self._flush()

    def exited(self, pid: int, status: int) -> bool:
        """Tell the end of process ``pid``. False: it is none of ours."""
        if pid != self.pid or not pid:
            return False
        self.pid = 0
        asked = self._socket is None
        self.close()
        if not asked:
            self._on_end(f"hpk-wire has ended with exit code {processes.exit_code(status)}")
        return True

    def close(self) -> None:
        """End the process: it ends when its control socket does."""
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._input = self._output = b""
        self._answers = {}

    # -- the inside -------------------------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        self._flush()
        if self._socket is None:
            return
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.forget(self._socket.fileno())  # exited() follows
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._answer(json.loads(line))

    def _answer(self, answer: dict[str, Any]) -> None:
        if answer.get("type") == "ready":
            if answer.get("version") != VERSION:
                words.say(f"network: {self._argv[0]} speaks version {answer.get('version')}, expected {VERSION}")
                self._on_end("hpk-wire has another version than HPK")
                self.close()
                return
            self._on_ready({name: answer[name] for name in ("publicKey", "port", "mtu")})
            return
        if answer["type"] == "error":
            words.say(f"network: {answer['message']}")
        done = self._answers.pop(answer["id"], None)
        if done is not None:
            done(answer)

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._output:
                self._output = self._output[self._socket.send(self._output) :]
        except BlockingIOError:
            pass
        except OSError:
            self._output = b""  # it has ended: exited() follows
        self._loop.watch(self._socket.fileno(), loop.READ | loop.WRITE if self._output else loop.READ, self._ready)
