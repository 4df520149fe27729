"""A thin client of the Kubernetes API: JSON objects as dicts, one HTTP session with keep-alive.

Requests that may safely be done twice are tried again, with back-off, when the server does not answer, is overloaded (429) or
fails (5xx). A POST is tried again only where the server surely did nothing. When the server cannot be reached or no longer
accepts us, the kubeconfig is read again if it changed: the control plane may have moved to another node.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Literal

import aiohttp
import yarl

from hpk import errors as hpk_errors
from hpk.kube import errors, kubeconfig

log = logging.getLogger(__name__)

Object = dict[str, Any]
PatchKind = Literal["merge", "strategic", "json", "apply"]

_PATCH_TYPES: dict[PatchKind, str] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",  # JSON is YAML
}
#: Pauses between the tries of one request, in seconds; jitter of a half is added.
RETRY_DELAYS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
#: Longest pause that the server may ask for by Retry-After, in seconds.
MAX_RETRY_AFTER = 10.0
#: Time that one request (not a watch) may take, in seconds: the server's own limit is 60. No retry begins later than that.
REQUEST_TIMEOUT = 65.0
CONNECT_TIMEOUT = 10.0


def path(group_version: str, plural: str, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
    """Return the URL path of a resource: ``path("apps/v1", "deployments", "default", "web", "status")``; "v1" is the core group."""
    parts = ["/api" if group_version == "v1" else "/apis", group_version]
    if namespace:
        parts += ["namespaces", urllib.parse.quote(namespace, safe="")]
    parts.append(plural)
    if name:
        parts.append(urllib.parse.quote(name, safe=""))
        if sub:
            parts.append(sub)
    return "/".join(parts)


def pods_path(namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
    """Return the path of Pods, of one Pod or of its subresource; all namespaces without ``namespace``."""
    return path("v1", "pods", namespace, name, sub)


def _query(values: Mapping[str, Any]) -> str:
    flat = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items() if value is not None}
    return "?" + urllib.parse.urlencode(flat) if flat else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return min(float(headers["Retry-After"]), MAX_RETRY_AFTER)
    except (KeyError, ValueError):
        return None


class Client:
    """Session with one API server. Use it as an async context manager, or call ``close()``."""

    def __init__(self, credentials: kubeconfig.Credentials, *, user_agent: str, kubeconfig_path: str | None = None) -> None:
        self._credentials = credentials
        self._path = kubeconfig_path
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._retired: list[aiohttp.ClientSession] = []

    @classmethod
    def from_kubeconfig(cls, path: str, *, user_agent: str) -> Client:
        """Raises InvalidInput when the file cannot be used."""
        return cls(kubeconfig.load(path), user_agent=user_agent, kubeconfig_path=path)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        sessions, self._session, self._retired = [self._session, *self._retired], None, []
        for session in sessions:
            if session is not None:
                await session.close()

    @property
    def server(self) -> str:
        """URL of the API server that is used now."""
        return self._credentials.server

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._credentials.tls or True, limit=0, ttl_dns_cache=30, keepalive_timeout=60),
                headers={"User-Agent": self._user_agent, "Accept": "application/json"},
                auto_decompress=True,
            )
        return self._session

    def _authorization(self) -> dict[str, str]:
        token = self._credentials.token
        if self._credentials.token_file:
            try:
                with open(self._credentials.token_file, encoding="ascii") as file:
                    token = file.read().strip()
            except OSError as exc:
                raise errors.Unreachable(f"tokenFile {self._credentials.token_file}: {exc.strerror}", sent=False) from exc
        return {"Authorization": f"Bearer {token}"} if token else {}

    def reload(self) -> bool:
        """Read the kubeconfig again if it, or a file that it names, changed. Running watches end by themselves."""
        if self._path is None or kubeconfig.signature(self._credentials) == self._credentials.signature:
            return False
        try:
            credentials = kubeconfig.load(self._path)
        except hpk_errors.InvalidInput as exc:  # being rewritten, or removed: the old ones stay
            log.warning("%s", exc.message)
            return False
        if credentials.server != self._credentials.server:
            log.info("the API server is now %s", credentials.server)
        self._credentials = credentials
        if self._session is not None:
            self._retired.append(self._session)
            self._session = None
        return True

    def _request(
        self, method: str, path: str, query: Mapping[str, Any], *, body: bytes | None, content_type: str, timeout: aiohttp.ClientTimeout
    ) -> Any:
        headers = self._authorization()
        if body is not None:
            headers["Content-Type"] = content_type
        url = yarl.URL(self._credentials.server + path + _query(query), encoded=True)
        return self._open().request(
            method,
            url,
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            server_hostname=self._credentials.server_name,
        )

    async def _once(self, method: str, path: str, query: Mapping[str, Any], body: bytes | None, content_type: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        try:
            async with self._request(method, path, query, body=body, content_type=content_type, timeout=timeout) as response:
                answer: bytes = await response.read()
                if response.status >= 300:
                    raise errors.from_response(response.status, answer, retry_after=_retry_after(response.headers))
                return answer
        except aiohttp.ClientConnectorError as exc:
            raise errors.Unreachable(f"{self.server}: {exc.strerror or exc}", sent=False) from exc
        except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError) as exc:
            words = "no answer in time" if isinstance(exc, (asyncio.TimeoutError, TimeoutError)) else f"{type(exc).__name__} {exc}"
            raise errors.Unreachable(f"{self.server}: {words}".strip()) from exc

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        *,
        content_type: str = "application/json",
        idempotent: bool = True,
    ) -> bytes:
        """One request with its retries; returns the body. Raises the classes of hpk/kube/errors.py."""
        delays = iter(RETRY_DELAYS)
        deadline = asyncio.get_running_loop().time() + REQUEST_TIMEOUT  # a silent server is not asked seven times
        while True:
            try:
                return await self._once(method, path, query or {}, body, content_type)
            except errors.Unauthorized:
                if not self.reload():
                    raise
                continue  # at most as often as the file changes
            except errors.Unreachable as exc:
                self.reload()
                failure: errors.APIStatus | errors.Unreachable = exc
                again = idempotent or not exc.sent
            except errors.TooManyRequests as exc:
                failure, again = exc, exc.retry_after is not None
            except errors.ServerError as exc:
                failure, again = exc, idempotent
            delay = next(delays, None)
            if not again or delay is None or asyncio.get_running_loop().time() > deadline:
                raise failure
            wanted = getattr(failure, "retry_after", None) or 0.0
            await asyncio.sleep(max(delay, wanted) * (1 + random.random() / 2))  # noqa: S311 - spreading, not a secret

    async def _json(self, method: str, path: str, query: Mapping[str, Any], body: Any = None, **how: Any) -> Object:
        raw = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        answer = await self.request(method, path, query, raw, **how)
        try:
            value = json.loads(answer)
        except ValueError as exc:
            raise errors.ServerError(502, "BadAnswer", f"{method} {path}: the answer is not JSON") from exc
        if not isinstance(value, dict):
            raise errors.ServerError(502, "BadAnswer", f"{method} {path}: the answer is not an object")
        return value

    async def text(self, path: str, **query: Any) -> str:
        """GET of what is no JSON: /readyz, /metrics."""
        return (await self.request("GET", path, query)).decode(errors="replace")

    async def get(self, path: str, **query: Any) -> Object:
        return await self._json("GET", path, query)

    async def pages(self, path: str, *, limit: int = 500, **query: Any) -> AsyncIterator[Object]:
        """The lists of one listing, page by page. Raises Gone when it took so long that the rest is no longer consistent."""
        token = None
        while True:
            page = await self._json("GET", path, {**query, "limit": limit or None, "continue": token})
            yield page
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return

    async def list(self, path: str, *, limit: int = 500, **query: Any) -> Object:
        """The whole list, read in pages of ``limit`` objects. The resourceVersion is that of its first moment."""
        try:
            whole: Object | None = None
            async for page in self.pages(path, limit=limit, **query):
                if whole is None:
                    whole = page
                else:
                    whole["items"] += page.get("items") or []
            assert whole is not None
        except errors.Gone:
            whole = await self._json("GET", path, query)  # in one piece: cannot expire
        whole["items"] = whole.get("items") or []
        whole.setdefault("metadata", {}).pop("continue", None)
        return whole

    async def create(self, path: str, body: Object, **query: Any) -> Object:
        return await self._json("POST", path, query, body, idempotent=False)

    async def replace(self, path: str, body: Object, **query: Any) -> Object:
        return await self._json("PUT", path, query, body)

    async def patch(self, path: str, body: Any, *, kind: PatchKind = "merge", **query: Any) -> Object:
        """``kind`` "apply" needs ``fieldManager``; "json" takes a list of operations and is never sent twice."""
        return await self._json("PATCH", path, query, body, content_type=_PATCH_TYPES[kind], idempotent=kind != "json")

    async def delete(self, path: str, body: Object | None = None, **query: Any) -> Object:
        """``body`` are DeleteOptions. A second try that finds nothing raises NotFound: it is gone all the same."""
        return await self._json("DELETE", path, query, body)

    async def watch(
        self, path: str, *, resource_version: str, idle: float | None = None, **query: Any
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """Yield (type, object) until the server ends the watch: ADDED, MODIFIED, DELETED, BOOKMARK. An ERROR event is raised.

        ``idle``: seconds without a byte after which the connection counts as dead (Unreachable). No retries: hpk/kube/watch.py.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=idle)
        query = {**query, "watch": True, "resourceVersion": resource_version}
        try:
            async with self._request("GET", path, query, body=None, content_type="", timeout=timeout) as response:
                if response.status >= 300:
                    raise errors.from_response(response.status, await response.read(), retry_after=_retry_after(response.headers))
                async for line in _lines(response.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise errors.from_status(event["object"])
                    yield event["type"], event["object"]
        except errors.Unauthorized:
            self.reload()
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError) as exc:
            self.reload()
            sent = not isinstance(exc, aiohttp.ClientConnectorError)
            raise errors.Unreachable(f"{self.server}: watch broken: {type(exc).__name__} {exc}".strip(), sent=sent) from exc
        except (ValueError, KeyError) as exc:
            raise errors.Unreachable(f"{self.server}: the watch of {path} broke off in the middle of an event") from exc


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length (aiohttp's own reader refuses long ones; an object may have megabytes)."""
    pending = bytearray()
    async for chunk in stream.iter_any():
        searched = len(pending)
        pending += chunk
        while (end := pending.find(b"\n", searched)) >= 0:
            yield bytes(pending[:end])
            del pending[: end + 1]
            searched = 0
    if pending.strip():
        yield bytes(pending)
