"""The API server of a cluster on the test bed, asked from outside of the bed without a kubectl for each question."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import json
import os
import socket
import ssl
import tempfile
import time
import urllib.parse
from collections.abc import Generator
from typing import Any

import yaml

Object = dict[str, Any]

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class APIError(Exception):
    """The API server said no; ``code`` is its status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


def connect_from(pid: int, address: tuple[str, int], timeout: float) -> socket.socket:
    """A connection that begins in the network of process ``pid``. Only this thread is there, and only for the moment."""
    home, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if _libc.setns(there, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        try:
            return socket.create_connection(address, timeout)
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)
        os.close(there)


class API:
    """Requests with the user's certificate; each goes on until it is answered, or ``patience`` seconds have passed."""

    def __init__(self, kubeconfig: str, pid: int, *, patience: float = 60.0) -> None:
        self._kubeconfig = kubeconfig
        self._pid = pid
        self._patience = patience
        self._connection: http.client.HTTPConnection | None = None
        self._watching: http.client.HTTPConnection | None = None

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        with open(self._kubeconfig, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
        server = urllib.parse.urlsplit(cluster["server"])
        assert server.hostname
        assert server.port
        connection = http.client.HTTPSConnection(server.hostname, server.port, timeout=timeout)
        plain = connect_from(self._pid, (server.hostname, server.port), timeout)
        try:
            connection.sock = context.wrap_socket(plain, server_hostname=server.hostname)
        except BaseException:
            plain.close()
            raise
        return connection

    def call(self, method: str, path: str, body: Object | None = None) -> Object:
        """One request. Raises APIError for an answer that is not a success, TimeoutError when there is none in time."""
        end = time.monotonic() + self._patience
        while True:
            try:
                if self._connection is None:
                    self._connection = self._connect(10)
                self._connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException, KeyError, TypeError) as exc:
                self.close()
                if time.monotonic() > end:
                    raise TimeoutError(f"{method} {path}: no answer of the API server: {exc}") from exc
                time.sleep(0.3)
                continue
            if answer.status < 300:
                return json.loads(text)
            unavailable = answer.status in (429, 500, 503, 504) or (answer.status == 403 and b"not yet" in text)
            if not unavailable or time.monotonic() > end:
                raise APIError(answer.status, text.decode(errors="replace")[:500])
            time.sleep(0.3)

    def watch(self, path: str) -> Generator[tuple[str, Object], None, None]:
        """The changes from now on, as long as one connection lasts. Raises OSError and HTTPException as it breaks."""
        connection = self._watching = self._connect(60)
        answer = None
        try:
            connection.request("GET", f"{path}?watch=1&timeoutSeconds=50")
            answer = connection.getresponse()
            while line := answer.readline():
                event = json.loads(line)
                yield event["type"], event["object"]
        finally:
            self._watching = None
            if answer is not None:
                answer.close()
            connection.close()

    def end_watch(self) -> None:
        """Let watch(), in another thread, come to its end."""
        watching = self._watching
        if watching is not None and watching.sock is not None:
            with contextlib.suppress(OSError):
                watching.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
