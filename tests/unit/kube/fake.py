"""A scripted API server: real HTTP on loopback, answers as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from hpk.kube import kubeconfig
from hpk.kube.client import Client

Object = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status(code: int, reason: str = "", message: str = "no", **more: Any) -> Answer:
    """An error answer; may be given several times, so it is made anew for each request."""
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=code, **more)

    return answer


def error_event(code: int, reason: str) -> Object:
    return {"type": "ERROR", "object": {"kind": "Status", "code": code, "reason": reason, "message": "too old"}}


def event(kind: str, name: str, version: int, **more: Any) -> Object:
    metadata = {"namespace": "n", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"type": kind, "object": {"metadata": metadata, **more}}


class FakeServer:
    """``answers`` are taken one per request, in order; each is a Response, an object (JSON), a list of watch events or a function."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self.server = TestServer(app)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query), await request.read()))
        if not self.answers:
            await asyncio.sleep(3600)
        answer = self.answers.pop(0)
        if callable(answer):
            return await answer(request)
        if isinstance(answer, list):
            return await self._watch(request, answer)
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    async def _watch(self, request: web.Request, events: list[Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for item in events:
            if isinstance(item, float):
                await asyncio.sleep(item)
            elif isinstance(item, bytes):
                await response.write(item)
            else:
                await response.write(json.dumps(item).encode() + b"\n")
        return response


@contextlib.asynccontextmanager
async def served(*answers: Any, token: str | None = None) -> AsyncIterator[tuple[FakeServer, Client]]:
    fake = FakeServer(*answers)
    await fake.server.start_server()
    credentials = kubeconfig.Credentials(
        server=str(fake.server.make_url("")).rstrip("/"), tls=None, server_name=None, token=token, token_file=None, signature=()
    )
    async with Client(credentials, user_agent="test") as client:
        yield fake, client
    await fake.server.close()
