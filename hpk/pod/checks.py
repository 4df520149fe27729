"""Requests to a container's ports, for probes and hooks: tcpSocket, httpGet and grpc. Non-blocking, on the supervisor's loop.

``done(ok, text)`` is called exactly once. The texts are those that users know from the kubelet (pkg/probe).
"""

from __future__ import annotations

import os
import socket

from hpk.pod import grpc, loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Bytes of a response that are read; the body is only for the message of a failure.
MAX_RESPONSE = 10 * 1024
USER_AGENT = "kube-probe/1.36"


def tcp(looper: loop.Loop, action: dict[str, Any], pod_ip: str, timeout: float, done: Callable[[bool, str], None]) -> None:
    """Whether the port of a tcpSocket action accepts a connection."""
    host, port = action.get("host") or pod_ip, int(action["port"])
    _Request(looper, host, port, b"", False, timeout, _no_answer, lambda problem: done(not problem, problem))


def http(looper: loop.Loop, action: dict[str, Any], pod_ip: str, timeout: float, done: Callable[[bool, str], None]) -> None:
    """Whether an httpGet action is answered with a status from 200 to 399."""
    host, port = action.get("host") or pod_ip, int(action["port"])
    secure = (action.get("scheme") or "HTTP").upper() == "HTTPS"
    path = action.get("path") or "/"
    if not path.startswith("/"):
        path = "/" + path
    url = f"{'https' if secure else 'http'}://{host}:{port}{path}"
    headers = {"Host": f"{host}:{port}", "User-Agent": USER_AGENT, "Accept": "*/*", "Connection": "close"}
    for header in action.get("httpHeaders") or []:
        name = next((known for known in headers if known.lower() == header["name"].lower()), header["name"])
        headers[name] = header.get("value", "")
    lines = [f"GET {_escape(path)} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]

    answer = b""

    def feed(data: bytes) -> bytes | None:
        nonlocal answer
        answer += data
        return None if b"\r\n" in answer or len(answer) > MAX_RESPONSE else b""

    def ended(problem: str) -> None:
        if problem and not answer:
            done(False, f'Get "{url}": {problem}')
            return
        words = answer.split(b"\r\n", 1)[0].split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            done(False, f'Get "{url}": malformed HTTP response')
            return
        status = int(words[1])
        done(200 <= status < 400, "" if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}")

    _Request(looper, host, port, "\r\n".join(lines).encode("latin-1", "replace"), secure, timeout, feed, ended)


def grpc_health(looper: loop.Loop, action: dict[str, Any], pod_ip: str, timeout: float, done: Callable[[bool, str], None]) -> None:
    """Whether the server of a grpc action says that its service is SERVING."""
    port = int(action["port"])
    name = f"{pod_ip}:{port}"
    health = grpc.Health(name, action.get("service") or "")

    def ended(problem: str) -> None:
        if problem.endswith("i/o timeout"):
            problem = f'timeout: failed to connect service "{name}" within {timeout:g}s: context deadline exceeded'
        elif problem.startswith("dial"):
            problem = f'error: failed to connect service at "{name}": {problem}'
        elif problem.startswith("context deadline"):
            problem = f"timeout: health rpc did not complete within {timeout:g}s"
        else:
            problem = health.problem
        done(not problem, problem)

    _Request(looper, pod_ip, port, health.request, False, timeout, health.feed, ended)


def _no_answer(_: bytes) -> bytes | None:
    return None


def _escape(path: str) -> str:
    return "".join(c if 32 < ord(c) < 127 else "".join(f"%{byte:02X}" for byte in c.encode()) for c in path)


class _Request:
    """Connect, send ``request`` unless it is empty, and give what comes to ``feed`` until that returns None; else it is sent.

    ``done`` is called with "" or what went wrong.
    """

    def __init__(
        self,
        looper: loop.Loop,
        host: str,
        port: int,
        request: bytes,
        secure: bool,
        timeout: float,
        feed: Callable[[bytes], bytes | None],
        done: Callable[[str], None],
    ) -> None:
        self._loop = looper
        self._name = f"{host}:{port}"
        self._request = request
        self._secure = secure
        self._wanted = bool(request)
        self._feed = feed
        self._done: Callable[[str], None] | None = done
        self._socket: Any = None
        self._connected = False
        self._timer = looper.later(timeout, self._time_out)
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            try:
                self._socket.connect(address)
            except BlockingIOError:
                pass
            looper.watch(self._socket.fileno(), loop.WRITE, self._ready)
        except OSError as error:
            problem = f"dial tcp {self._name}: {_words(error)}"
            looper.later(0, lambda: self._end(problem))

    def _time_out(self) -> None:
        if self._connected:
            self._end("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
        else:
            self._end(f"dial tcp {self._name}: i/o timeout")

    def _ready(self, _: int) -> None:
        try:
            if not self._connected:
                number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    self._end(f"dial tcp {self._name}: connect: {os.strerror(number).lower()}")
                    return
                self._connected = True
                if not self._wanted:
                    self._end("")
                    return
                if self._secure:
                    self._wrap()
            self._talk()
        except OSError as error:
            self._end(_words(error))

    def _wrap(self) -> None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # as the kubelet: a probe asks whether it works, not who it is
        context.verify_mode = ssl.CERT_NONE
        self._loop.forget(self._socket.fileno())
        self._socket = context.wrap_socket(self._socket, do_handshake_on_connect=False)
        self._loop.watch(self._socket.fileno(), loop.READ | loop.WRITE, self._ready)

    def _talk(self) -> None:
        want = loop.READ
        try:
            if self._secure:
                self._socket.do_handshake()
            while True:
                while self._request:
                    self._request = self._request[self._socket.send(self._request) :]
                data = self._socket.recv(4096)
                if not data:
                    self._end("EOF")
                    return
                reply = self._feed(data)
                if reply is None:
                    self._end("")
                    return
                self._request += reply
        except BlockingIOError:
            want = loop.WRITE if self._request else loop.READ
        except OSError as error:
            name = type(error).__name__
            if name not in ("SSLWantReadError", "SSLWantWriteError"):
                raise
            want = loop.READ if name == "SSLWantReadError" else loop.WRITE
        self._loop.watch(self._socket.fileno(), want, self._ready)

    def _end(self, problem: str) -> None:
        done, self._done = self._done, None
        self._timer.cancel()
        if self._socket is not None and self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        if done is not None:
            done(problem)


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
