"""The kubelet's end of the channel, over real TLS on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pathlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hpk import records
from hpk.bootstrap import pki
from hpk.kubelet import channel

UID, SECRET = "uid-1", "s3cret-token"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pki")
    pki.PKI(str(folder)).ensure(
        [pki.Leaf("kubelet", "ca", "system:node:hpk", server=True, names=("hpk-kubelet",), addresses=("127.0.0.1",))]
    )
    return folder


class Listener:
    """A ChannelServer and what it told."""

    def __init__(self, hello_seconds: float) -> None:
        self.told: list[tuple[str, Any]] = []
        self.server = channel.ChannelServer(
            token=lambda uid: SECRET if uid == UID else None,
            on_open=lambda uid, hello: self.told.append(("open", hello)),
            on_report=lambda uid, report: self.told.append(("report", report)),
            on_close=lambda uid: self.told.append(("close", uid)),
            hello_seconds=hello_seconds,
        )
        self.port = 0

    async def until(self, kind: str, count: int = 1) -> Any:
        for _ in range(500):
            found = [value for name, value in self.told if name == kind]
            if len(found) >= count:
                return found[-1]
            await asyncio.sleep(0.01)
        raise AssertionError(f"no {kind}: {self.told}")


@pytest.fixture
async def listener(certificates: pathlib.Path) -> AsyncIterator[Listener]:
    found = Listener(0.5)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "kubelet.crt", certificates / "kubelet.key")
    found.port = await found.server.start(tls, host="127.0.0.1")
    yield found
    await found.server.close()


class Peer:
    """A supervisor, or somebody who says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, listener: Listener, certificates: pathlib.Path) -> Peer:
        tls = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        return cls(*await asyncio.open_connection("127.0.0.1", listener.port, ssl=tls, server_hostname="hpk-kubelet"))

    async def send(self, message: Any) -> None:
        self.writer.write(records.frame(records.JSON_FRAME, 0, json.dumps(message).encode()))
        await self.writer.drain()

    async def hello(self, **values: Any) -> None:
        await self.send({"type": "hello", "uid": UID, "token": SECRET, "jobID": "7", "host": "c1", "version": 1, **values})

    async def receive(self) -> Any:
        _, _, payload = await asyncio.wait_for(channel.read_frame(self.reader), 5)
        return json.loads(payload)

    async def closed(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), 5) == b""
        except ConnectionError:  # not OSError: a time-out is one
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the server was first


async def test_reports_reach_the_kubelet_and_stop_reaches_the_pod(listener: Listener, certificates: pathlib.Path) -> None:
    peer = await Peer.dial(listener, certificates)
    await peer.hello()
    assert await peer.receive() == {"type": "welcome"}
    hello = await listener.until("open")
    assert (hello["jobID"], "token" in hello) == ("7", False)
    await peer.send({"type": "status", "report": {"uid": UID, "seq": 1}})
    assert (await listener.until("report"))["seq"] == 1
    assert listener.server.stop_pod(UID, 4.6, "DeadlineExceeded", "too long")
    assert await peer.receive() == {"type": "stop", "gracePeriodSeconds": 5, "reason": "DeadlineExceeded", "message": "too long"}
    await peer.close()
    await listener.until("close")
    assert not listener.server.stop_pod(UID, 1, "", "")


@pytest.mark.parametrize("hello", [{"token": "wrong"}, {"token": ""}, {"uid": "uid-2"}, {"uid": ""}, {"version": 9}, {"type": "status"}])
async def test_who_does_not_prove_itself_is_turned_away(
    listener: Listener, certificates: pathlib.Path, hello: dict, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await Peer.dial(listener, certificates)
    with caplog.at_level(logging.DEBUG):
        await peer.hello(**hello)
        if hello.get("type") != "status":
            assert (await peer.receive())["type"] == "error"
        assert await peer.closed()
    assert listener.told == []
    assert SECRET not in caplog.text
    assert "wrong" not in caplog.text.replace("wrong token", "")
    await peer.close()


async def test_newer_channel_replaces_the_older(listener: Listener, certificates: pathlib.Path) -> None:
    first, second = await Peer.dial(listener, certificates), await Peer.dial(listener, certificates)
    await first.hello()
    await first.receive()
    await second.hello()
    await second.receive()
    assert await first.closed()
    await second.send({"type": "status", "report": {"uid": UID, "seq": 2}})
    await listener.until("report")
    assert ("close", UID) not in listener.told
    assert len(listener.server) == 1
    await first.close()
    await second.close()


async def test_silence_before_the_hello_ends_the_connection(listener: Listener, certificates: pathlib.Path) -> None:
    peer = await Peer.dial(listener, certificates)
    assert await peer.closed()
    await peer.close()


@pytest.mark.parametrize(
    "raw",
    [
        records.HEADER.pack(2**31, b"J", 0),
        records.HEADER.pack(3, b"J", 0),
        records.frame(b"J", 0, b"not json"),
        records.frame(b"J", 0, b"[1]"),
        records.frame(b"X", 0, b"{}"),
        os.urandom(64),
    ],
)
async def test_nonsense_ends_the_connection_only(listener: Listener, certificates: pathlib.Path, raw: bytes) -> None:
    peer = await Peer.dial(listener, certificates)
    peer.writer.write(raw)
    assert await peer.closed()
    await peer.close()
    good = await Peer.dial(listener, certificates)
    await good.hello()
    assert await good.receive() == {"type": "welcome"}
    await good.close()


async def test_frame_that_is_too_long_ends_the_connection(listener: Listener, certificates: pathlib.Path) -> None:
    peer = await Peer.dial(listener, certificates)
    await peer.hello()
    await peer.receive()
    peer.writer.write(records.HEADER.pack(records.MAX_FRAME + 6, b"J", 0))
    assert await peer.closed()
    await peer.close()


async def test_report_about_another_pod_is_refused(listener: Listener, certificates: pathlib.Path) -> None:
    peer = await Peer.dial(listener, certificates)
    await peer.hello()
    await peer.receive()
    await peer.send({"type": "status", "report": {"uid": "uid-2", "seq": 1}})
    assert await peer.closed()
    assert "report" not in [kind for kind, _ in listener.told]
    await peer.close()


async def test_plain_tcp_gets_nowhere(listener: Listener) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(records.frame(b"J", 0, json.dumps({"type": "hello", "uid": UID, "token": SECRET, "version": 1}).encode()))
    try:
        assert b"welcome" not in await asyncio.wait_for(reader.read(), 5)
    except OSError:
        pass
    assert listener.told == []
    writer.close()
