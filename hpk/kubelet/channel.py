"""The listener that the supervisors in the jobs dial: TLS, one channel per Pod, frames of hpk/records.py.

A channel opens with ``hello`` that proves by the Pod's token (a file in the Pod's folder) whose it is. A newer channel of a Pod
replaces the older one: the supervisor dials again when it believes the connection dead. Tokens never reach a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from hpk import errors, records

log = logging.getLogger(__name__)

Object = dict[str, Any]

#: Seconds within which a new connection must have finished TLS and said hello.
HELLO_SECONDS = 10.0
#: Largest hello, in bytes: nobody has proved anything yet.
MAX_HELLO = 4096
#: Frames that may wait for a slow peer, in bytes; one that takes less is dropped, it will dial again.
MAX_BACKLOG = 8 * 1024 * 1024


class ProtocolError(errors.HPKError):
    """The peer does not speak as records.py says."""


async def read_frame(reader: asyncio.StreamReader, limit: int = records.MAX_FRAME) -> tuple[bytes, int, bytes]:
    """Return (kind, stream, payload). Raises ProtocolError, asyncio.IncompleteReadError at the end."""
    length, kind, stream = records.HEADER.unpack(await reader.readexactly(records.HEADER.size))
    if not 5 <= length <= limit + 5:
        raise ProtocolError(f"frame of {length} bytes")
    return kind, stream, await reader.readexactly(length - 5)


def _control(kind: bytes, stream: int, payload: bytes) -> Object:
    if kind != records.JSON_FRAME or stream != 0:
        raise ProtocolError(f"frame of kind {kind!r} on stream {stream}")
    try:
        message = json.loads(payload)
    except ValueError as exc:
        raise ProtocolError("a control frame is not JSON") from exc
    if not isinstance(message, dict):
        raise ProtocolError("a control frame is no object")
    return message


class Channel:
    """One supervisor's connection."""

    def __init__(self, uid: str, writer: asyncio.StreamWriter) -> None:
        self.uid = uid
        self._writer = writer

    def send(self, message: Object) -> bool:
        """Queue a control frame; False when the channel is dying or its peer does not read."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > MAX_BACKLOG:
            return False
        self._writer.write(records.frame(records.JSON_FRAME, 0, json.dumps(message, separators=(",", ":")).encode()))
        return True

    def close(self) -> None:
        self._writer.close()


class ChannelServer:
    """``token(uid)`` returns the secret of a Pod, None for one that we do not know; the callbacks must not block.

    ``on_open(uid, hello)``, ``on_report(uid, report)``, ``on_close(uid)`` (not when a newer channel took over).
    """

    def __init__(
        self,
        *,
        token: Callable[[str], str | None],
        on_open: Callable[[str, Object], None],
        on_report: Callable[[str, Object], None],
        on_close: Callable[[str], None],
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._token = token
        self._on_open = on_open
        self._on_report = on_report
        self._on_close = on_close
        self._hello_seconds = hello_seconds
        self._channels: dict[str, Channel] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __len__(self) -> int:
        return len(self._channels)

    def connected(self, uid: str) -> bool:
        return uid in self._channels

    def peer(self, uid: str) -> Channel | None:
        """The Pod's present channel: another object after each connection."""
        return self._channels.get(uid)

    def stop_pod(self, uid: str, grace: float, reason: str, message: str) -> bool:
        """Ask the Pod's supervisor to end it within ``grace`` seconds. False: no channel, it was not told."""
        channel = self._channels.get(uid)
        return channel is not None and channel.send(
            {"type": "stop", "gracePeriodSeconds": max(0, round(grace)), "reason": reason, "message": message}
        )

    async def start(self, tls: ssl.SSLContext, *, port: int = 0, host: str | None = None) -> int:
        """Listen on ``port`` (if it is taken, or 0, on a free one) and return the port."""
        if port:
            with contextlib.suppress(OSError):
                return await self._listen(tls, host, port)
        return await self._listen(tls, host, 0)

    async def _listen(self, tls: ssl.SSLContext, host: str | None, port: int) -> int:
        self._server = await asyncio.start_server(
            self._accept,
            host or "0.0.0.0",  # noqa: S104 - compute nodes dial it; every connection must prove itself
            port,
            ssl=tls,
            ssl_handshake_timeout=self._hello_seconds,
            limit=2**16,
            backlog=1024,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop the channels; the supervisors go on and dial the next kubelet."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with _logged(writer):
                await self._serve(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = _control(*await asyncio.wait_for(read_frame(reader, MAX_HELLO), self._hello_seconds))
        uid, secret = str(hello.get("uid", "")), str(hello.pop("token", ""))
        channel = Channel(uid, writer)
        if hello.get("type") != "hello":
            raise ProtocolError("the first frame is no hello")
        if hello.get("version") != records.CHANNEL_VERSION:
            channel.send({"type": "error", "message": f"version {records.CHANNEL_VERSION} of the channel is spoken here"})
            raise ProtocolError(f"Pod {uid[:64]!r} speaks version {hello.get('version')!r} of the channel")
        expected = self._token(uid)
        if not expected or not hmac.compare_digest(expected.encode(), secret.encode()):
            channel.send({"type": "error", "message": "unknown Pod or wrong token"})
            raise ProtocolError(f"hello for Pod {uid[:64]!r}: unknown, or with a wrong token")
        _keep_alive(writer)
        old = self._channels.get(uid)
        self._channels[uid] = channel
        if old is not None:
            old.close()
        try:
            channel.send({"type": "welcome"})
            self._on_open(uid, hello)
            while True:
                kind, stream, payload = await read_frame(reader)
                if stream != 0:
                    continue  # streams are not opened by us yet, and never by the peer
                message = _control(kind, stream, payload)
                if message.get("type") == "status" and isinstance(message.get("report"), dict):
                    if message["report"].get("uid") != uid:
                        raise ProtocolError(f"Pod {uid} reports for another one")
                    self._on_report(uid, message["report"])
        finally:
            if self._channels.get(uid) is channel:
                del self._channels[uid]
                self._on_close(uid)


@contextlib.contextmanager
def _logged(writer: asyncio.StreamWriter) -> Iterator[None]:
    """What ends a connection is no defect of ours: one line at most."""
    peer = writer.get_extra_info("peername")
    try:
        yield
    except ProtocolError as exc:
        log.warning("channel from %s: %s", peer[0] if peer else "?", exc.message)
    except (asyncio.TimeoutError, TimeoutError):
        log.info("channel from %s: no hello in time", peer[0] if peer else "?")
    except (asyncio.IncompleteReadError, OSError):
        pass  # the other side is gone, or was never a supervisor
    except asyncio.CancelledError:
        pass  # close() does that, and nobody awaits this task


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Let the kernel find dead nodes within half a minute: sooner than Slurm does, which is then asked more often."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        ):
            sock.setsockopt(level, option, value)
