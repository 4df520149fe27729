"""The requests of probes against real servers on loopback: HTTP, HTTPS, TCP, and agnhost's gRPC health service."""

from __future__ import annotations

import glob
import http.server
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from hpk.pod import checks, loop
from tests.component import kubelet_end

pytestmark = pytest.mark.component


def check(kind: str, action: dict[str, Any], timeout: float = 2) -> tuple[bool, str]:
    looper = loop.Loop()
    answers: list[tuple[bool, str]] = []

    def done(ok: bool, text: str) -> None:
        answers.append((ok, text))
        looper.later(0.05, looper.stop)  # a second answer would show

    getattr(checks, kind)(looper, action, "127.0.0.1", timeout, done)
    looper.later(timeout + 3, looper.stop)
    looper.run()
    assert len(answers) == 1
    return answers[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(3)
        if self.path == "/cut":
            return
        code = int(self.path.strip("/").split("?")[0]) if self.path.strip("/").split("?")[0].isdigit() else 200
        if self.path == "/header" and (self.headers["X-Token"], self.headers["Host"], self.headers["User-Agent"]) != ("a b", "me", "mine"):
            code = 400
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"x" * 100000)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def closed() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("path", "ok"), [("/200", True), ("/302", True), ("/399", True), ("/400", False), ("/500", False), ("", True)])
def test_http_status(port: int, path: str, ok: bool) -> None:
    text = "" if ok else f"HTTP probe failed with statuscode: {path[1:]}"
    assert check("http", {"port": port, "path": path}) == (ok, text)


def test_http_headers(port: int) -> None:
    headers = [{"name": "X-Token", "value": "a b"}, {"name": "host", "value": "me"}, {"name": "User-Agent", "value": "mine"}]
    assert check("http", {"port": port, "path": "/header", "httpHeaders": headers})[0]
    assert not check("http", {"port": port, "path": "/header"})[0]


def test_http_failures(port: int, closed: int) -> None:
    ok, text = check("http", {"port": port, "path": "/slow"}, 1)
    assert (ok, text) == (
        False,
        f'Get "http://127.0.0.1:{port}/slow": context deadline exceeded (Client.Timeout exceeded while awaiting headers)',
    )
    assert check("http", {"port": port, "path": "/cut"}) == (False, f'Get "http://127.0.0.1:{port}/cut": EOF')
    text = f'Get "http://127.0.0.1:{closed}/": dial tcp 127.0.0.1:{closed}: connect: connection refused'
    assert check("http", {"port": closed, "path": "/"}) == (False, text)
    assert "dial tcp no.such.host.invalid" in check("http", {"port": 1, "host": "no.such.host.invalid"})[1]


def test_https_without_verification(tmp_path: Any) -> None:
    certificate, key = kubelet_end.certificate("whoever")
    pem = serialization.Encoding.PEM
    path = tmp_path / "pem"
    path.write_bytes(
        certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        number = server.server_address[1]
        assert check("http", {"port": number, "scheme": "HTTPS", "path": "/200"}) == (True, "")
        assert check("http", {"port": number, "scheme": "HTTPS", "path": "/503"}) == (False, "HTTP probe failed with statuscode: 503")
        assert not check("http", {"port": number, "scheme": "HTTP", "path": "/200"})[0]
        server.shutdown()


def test_tcp(port: int, closed: int) -> None:
    assert check("tcp", {"port": port}) == (True, "")
    assert check("tcp", {"port": closed}) == (False, f"dial tcp 127.0.0.1:{closed}: connect: connection refused")


def test_grpc_health() -> None:
    found = sorted(glob.glob("/var/cache/hpk/testbed/agnhost/agnhost-*"))
    if not found:
        pytest.skip("agnhost is not built (python -m tests.testbed up builds it)")
    ports = [_free(), _free()]
    argv = [found[-1], "grpc-health-checking", "--port", str(ports[0]), "--http-port", str(ports[1]), "--delay-unhealthy-sec", "4"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 5
        while not (answer := check("grpc_health", {"port": ports[0]}))[0] and time.monotonic() < end:
            pass
        assert answer == (True, "")
        ok, text = check("grpc_health", {"port": ports[0], "service": "nobody" * 60})
        assert (ok, text.startswith("error: this server does not implement")) == (False, True)
        time.sleep(5)
        assert check("grpc_health", {"port": ports[0]}) == (False, 'service unhealthy (responded with "NOT_SERVING")')
    finally:
        server.kill()
        server.wait()
    assert not check("grpc_health", {"port": ports[0]})[0]


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_defect_in_a_callback_does_not_end_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    looper = loop.Loop()
    looper.later(0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    looper.later(0.3, looper.stop)
    looper.run()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_no_descriptors_are_left_open(port: int, closed: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        check("http", {"port": port, "path": "/200"})
        check("tcp", {"port": closed})
    assert len(os.listdir("/proc/self/fd")) <= before + 1
