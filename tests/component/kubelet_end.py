"""The kubelet's end of the channel, reduced to a TLS server that keeps what it gets. Frames as in hpk/records.py."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import pathlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hpk import files, records


def certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A CA, or a serving certificate for ``name`` by ``issuer``."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


class KubeletEnd:
    """Listens on loopback; ``folder`` gets the endpoint, CA and token files that a plan names."""

    def __init__(self, folder: pathlib.Path, *, name: str = "hpk-kubelet", readable_by: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.readable_by = readable_by
        ca = certificate("test CA")
        leaf, key = certificate(name, ca)
        pem = serialization.Encoding.PEM
        (folder / "ca.crt").write_bytes(ca[0].public_bytes(pem))
        (folder / "leaf.pem").write_bytes(
            leaf.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / "token").write_text("the token\n")
        self.frames: list[dict[str, Any]] = []
        self.connections: list[ssl.SSLSocket] = []
        self.listener: socket.socket | None = None
        for path in (folder, *folder.iterdir()):
            if readable_by is not None:
                os.chown(path, readable_by, readable_by)

    @property
    def record(self) -> dict[str, str]:
        return {
            name: str(self.folder / file) for name, file in (("endpointFile", "kubelet.json"), ("caFile", "ca.crt"), ("tokenFile", "token"))
        }

    def listen(self) -> KubeletEnd:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "leaf.pem")
        self.listener = socket.create_server(("127.0.0.1", 0))
        files.write_json(
            str(self.folder / "kubelet.json"),
            {"address": "127.0.0.1", "port": self.listener.getsockname()[1], "serverName": "hpk-kubelet"},
            mode=0o644,
        )
        threading.Thread(target=self._accept, args=(self.listener, context), daemon=True).start()
        return self

    def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                connection = context.wrap_socket(plain, server_side=True)
            except (OSError, ssl.SSLError) as error:
                self.frames.append({"type": "failed handshake", "error": str(error)})
                continue
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: ssl.SSLSocket) -> None:
        try:
            while True:
                length, kind, stream = records.HEADER.unpack(self._exactly(connection, records.HEADER.size))
                assert (kind, stream) == (b"J", 0)
                frame = json.loads(self._exactly(connection, length - 5))
                self.frames.append(frame)
                if frame["type"] == "hello":
                    self.send({"type": "welcome"}, connection)
        except (OSError, EOFError):
            return

    def _exactly(self, connection: ssl.SSLSocket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = connection.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def send(self, value: dict[str, Any], connection: ssl.SSLSocket | None = None) -> None:
        (connection or self.connections[-1]).sendall(records.frame(records.JSON_FRAME, 0, json.dumps(value).encode()))

    def close(self) -> None:
        if self.listener is not None:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # close() alone would wait for the thread that reads from it
            connection.close()
        self.connections = []

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def report(self) -> dict[str, Any]:
        reports = self.of("status")
        return reports[-1]["report"] if reports else {}

    def wait_for(self, what: Callable[[], Any], seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.frames[-3:]
            time.sleep(0.02)
