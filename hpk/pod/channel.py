"""The supervisor's end of the channel to the kubelet (records.py: channel).

The job dials, so no port listens on a compute node. The kubelet may be away for any time, and come back elsewhere: the endpoint
file is read again before each attempt. Nothing here waits: the containers never depend on the kubelet.
"""

from __future__ import annotations

import json
import os
import time

from hpk import files, records
from hpk.pod import loop, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable
    from typing import Any

#: Pause between attempts in seconds: first, and at most.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
#: Seconds for connection and handshake together.
DIAL_TIMEOUT = 15.0
#: Seconds of silence after which the kernel probes the peer, and after which unacknowledged data ends the connection.
KEEPALIVE = 60
USER_TIMEOUT = 60


class Channel:
    """``hello`` are the fields of the first frame but the token; ``on_frame(object)`` gets the kubelet's control frames."""

    def __init__(
        self, looper: loop.Loop, kubelet: dict[str, str], hello: dict[str, Any], on_frame: Callable[[dict[str, Any]], None]
    ) -> None:
        self._loop = looper
        self._kubelet = kubelet
        self._hello = hello
        self._on_frame = on_frame
        self._socket: socket.socket | None = None
        self._ssl: ssl.SSLSocket | None = None
        self._state = "closed"  # connecting, handshake, open
        self._input = b""
        self._output = b""
        self._latest: dict[str, Any] | None = None
        self._report: dict[str, Any] | None = None  # the latest, until it has been sent on this connection
        self._pause = FIRST_PAUSE
        self._timer: loop.Timer | None = None
        self._refused = False
        self._problem = ""
        self._problem_at = 0.0

    @property
    def up(self) -> bool:
        return self._state == "open"

    @property
    def idle(self) -> bool:
        """Everything that was to be sent has left."""
        return not self._output and self._report is None

    def send_report(self, report: dict[str, Any]) -> None:
        """Send ``report`` as soon as possible. A newer one replaces it while it waits: each report is complete."""
        self._latest = self._report = report
        if self.up:
            self._flush()

    def dial(self) -> None:
        """Try to connect now. Sets up the next attempt when it fails."""
        self._timer = None
        if self._refused or self._state != "closed":
            return
        try:
            self._connect()
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._close(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End the connection for good."""
        self._refused = True
        self._close("")

    # -- the inside -------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        endpoint = files.read_json(self._kubelet["endpointFile"])
        if endpoint is None:
            raise OSError("the kubelet's endpoint file is not there")
        # imported when needed: together they are a third of the memory
        import socket
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(self._kubelet["caFile"])
        family, kind, protocol, _, address = socket.getaddrinfo(endpoint["address"], int(endpoint["port"]), type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE // 4),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT * 1000),
        ):
            self._socket.setsockopt(level, option, value)
        try:
            self._socket.connect(address)
        except BlockingIOError:
            pass
        self._ssl = context.wrap_socket(
            self._socket, server_hostname=endpoint["serverName"], do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self._socket = None  # wrap_socket() has taken the descriptor
        self._state = "connecting"
        self._timer = self._loop.later(DIAL_TIMEOUT, lambda: self._close("the kubelet does not answer"))
        self._loop.watch(self._ssl.fileno(), loop.WRITE, self._ready)

    def _ready(self, events: int) -> None:
        import ssl

        try:
            if self._state == "connecting":
                assert self._ssl is not None
                import socket

                number = self._ssl.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number))
                self._state = "handshake"
            if self._state == "handshake":
                self._handshake()
            if self._state == "open":
                self._read()
                if self._state == "open":
                    self._flush()
        except ssl.SSLCertVerificationError as error:
            self._close(f"the kubelet's certificate: {error.verify_message}")
        except (OSError, ValueError) as error:
            self._close(str(error))

    def _handshake(self) -> None:
        import ssl

        assert self._ssl is not None
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.watch(self._ssl.fileno(), loop.READ, self._ready)
            return
        except ssl.SSLWantWriteError:
            self._loop.watch(self._ssl.fileno(), loop.WRITE, self._ready)
            return
        with open(self._kubelet["tokenFile"], encoding="utf-8") as file:
            token = file.read().strip()
        self._state = "open"
        self._report = self._latest
        self._problem = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue({"type": "hello", "token": token, "version": records.CHANNEL_VERSION, **self._hello})

    def _queue(self, value: dict[str, Any]) -> None:
        self._output += records.frame(records.JSON_FRAME, 0, json.dumps(value, ensure_ascii=False).encode())

    def _read(self) -> None:
        import ssl

        assert self._ssl is not None
        while self._state == "open":
            try:
                data = self._ssl.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                self._close("the kubelet has closed the channel")
                return
            self._input += data
            self._parse()

    def _parse(self) -> None:
        header = records.HEADER
        while len(self._input) >= header.size:
            length, kind, stream = header.unpack_from(self._input)
            if not 5 <= length <= records.MAX_FRAME + 5:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._input) < 4 + length:
                return
            payload = self._input[header.size : 4 + length]
            self._input = self._input[4 + length :]
            if kind != records.JSON_FRAME or stream != 0:
                continue
            value = json.loads(payload)
            if not isinstance(value, dict):
                raise ValueError("a control frame that is no object")
            if value.get("type") == "welcome":
                self._pause = FIRST_PAUSE
            elif value.get("type") == "error":
                self._refused = True
                self._close(f"the kubelet refuses this job: {value.get('message')}")
                return
            else:
                self._on_frame(value)

    def _flush(self) -> None:
        import ssl

        assert self._ssl is not None
        while True:
            if not self._output and self._report is not None:
                self._queue({"type": "status", "report": self._report})
                self._report = None
            if not self._output:
                break
            try:
                self._output = self._output[self._ssl.send(self._output) :]
            except ssl.SSLWantReadError:
                break
            except ssl.SSLWantWriteError:
                self._loop.watch(self._ssl.fileno(), loop.READ | loop.WRITE, self._ready)
                return
            except OSError as error:
                self._close(str(error))
                return
        self._loop.watch(self._ssl.fileno(), loop.READ, self._ready)

    def _close(self, problem: str) -> None:
        """Drop the connection, say why (the same reason at most every ten minutes), and plan the next attempt."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ssl is not None:
            self._loop.forget(self._ssl.fileno())
            self._ssl.close()
            self._ssl = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._state = "closed"
        self._input = self._output = b""
        now = time.monotonic()
        if problem and (problem != self._problem or now - self._problem_at > 600):
            words.say(f"channel: {problem}")
            self._problem, self._problem_at = problem, now
        if not self._refused:
            # spread over half the pause, so that a thousand jobs do not come back in the same instant
            spread = 0.75 + 0.5 * int.from_bytes(os.urandom(2), "big") / 65535
            self._timer = self._loop.later(self._pause * spread, self.dial)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
