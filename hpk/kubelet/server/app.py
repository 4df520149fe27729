"""The kubelet's HTTPS API: what the API server, metrics collectors and tests ask of a node (pkg/kubelet/server/server.go).

Each request is authenticated and authorized before anything else is looked at (auth.py). Errors are plain text in upstream's
words: the API server puts them into what kubectl shows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from hpk import config as hpk_config
from hpk import errors as hpk_errors
from hpk import paths as hpk_paths
from hpk.kube import client as kube_client
from hpk.kubelet.server import auth, logs

log = logging.getLogger(__name__)

Object = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CERTIFICATE_CHECK_SECONDS = 60.0


def tls(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """Server side; a client's certificate is asked for but not demanded, since tokens are accepted as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


class Server:
    """``pods`` gives the Pods of this node with their newest status."""

    def __init__(
        self,
        *,
        config: hpk_config.Config,
        paths: hpk_paths.Paths,
        client: kube_client.Client,
        pods: Callable[[], list[Object]],
    ) -> None:
        self._paths = paths
        self._pods = pods
        self._node_name = config.cluster.node_name
        self._auth = auth.Auth(client, self._node_name)
        self._runner: web.AppRunner | None = None
        self._renewal: asyncio.Task[None] | None = None
        self.app = self._build()

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 1024)
        get = app.router.add_get
        for path in ("/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"):
            get(path, self._healthz)
        get("/pods", self._get_pods)
        get("/runningpods/", self._get_running_pods)
        get("/metrics", self._metrics)
        get("/containerLogs/{namespace}/{pod}/{container}", self._container_logs)
        for path in (
            "/exec/{tail:.+}",
            "/attach/{tail:.+}",
            "/portForward/{tail:.+}",
            "/run/{tail:.+}",
            "/stats/{tail:.+}",
            "/metrics/{tail:.+}",
        ):
            app.router.add_route("*", path, _not_implemented)
        return app

    async def start(self, address: str, port: int = 0) -> int:
        """Listen on ``address``; port 0 takes a free one. Returns the port. Raises OSError."""
        folder = self._paths.pki
        certificate, key = os.path.join(folder, "kubelet.crt"), os.path.join(folder, "kubelet.key")
        context = tls(certificate, key, self._paths.ca_cert)
        self._runner = web.AppRunner(self.app, access_log=None, handler_cancellation=True, keepalive_timeout=75, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, address, port, ssl_context=context)
        await site.start()
        self._renewal = asyncio.create_task(_reload(context, certificate, key), name="kubelet-certificate")
        bound: int = self._runner.addresses[0][1]
        log.info("kubelet API on https://%s:%d", address, bound)
        return bound

    async def stop(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authentication, authorization, and errors as text."""
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        try:
            user = await self._auth.authenticate(certificate, request.headers.get("Authorization", ""))
            if user is None:
                return web.Response(status=401, text="Unauthorized")
            wanted = auth.Attributes.of(request.method, request.path)
            allowed = await self._auth.allows(user, wanted)
        except hpk_errors.APIError as exc:
            log.warning("%s %s: cannot be authorized: %s", request.method, request.path, exc.message)
            return web.Response(status=500, text="Authorization error: the API server does not answer")
        if not allowed:
            what = f"user={user.name}, verb={wanted.verb}, resource=nodes, subresource(s)=[{' '.join(wanted.subresources)}]"
            log.info("%s %s: forbidden (%s)", request.method, request.path, what)
            return web.Response(status=403, text=f"Forbidden ({what})")
        try:
            return await handler(request)
        except web.HTTPException as exc:
            if exc.status >= 400:
                return web.Response(status=exc.status, text=exc.text or exc.reason)
            raise
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return web.Response(status=500, text="internal error of the kubelet")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _get_pods(self, request: web.Request) -> web.Response:
        return _pod_list(self._pods())

    async def _get_running_pods(self, request: web.Request) -> web.Response:
        return _pod_list([pod for pod in self._pods() if _running_containers(pod)])

    async def _metrics(self, request: web.Request) -> web.Response:
        """What is known without asking anybody, in upstream's names; the rest is not made up."""
        pods = self._pods()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        running = [len(_running_containers(pod)) for pod in pods]
        values = [
            (f'kubelet_node_name{{node="{self._node_name}"}}', "gauge", 1),
            ("kubelet_desired_pods", "gauge", len(pods)),
            ("kubelet_running_pods", "gauge", sum(1 for count in running if count)),
            ('kubelet_running_containers{container_state="running"}', "gauge", sum(running)),
            ("process_cpu_seconds_total", "counter", round(usage.ru_utime + usage.ru_stime, 2)),
            ("process_resident_memory_bytes", "gauge", _resident()),
            ("process_open_fds", "gauge", len(os.listdir("/proc/self/fd"))),
        ]
        text = "".join(f"# TYPE {name.partition('{')[0]} {kind}\n{name} {value}\n" for name, kind, value in values)
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _container_logs(self, request: web.Request) -> web.StreamResponse:
        namespace, name, container = (request.match_info[part] for part in ("namespace", "pod", "container"))
        try:
            chosen = logs.options(request.query, datetime.now(timezone.utc))
        except logs.BadQuery as exc:
            return web.Response(status=400, text=json.dumps({"message": exc.message}))
        except logs.InvalidOptions as exc:
            return web.Response(status=422, text=json.dumps({"message": exc.message}))
        pod = self._find(namespace, name)
        if pod is None:
            return web.Response(status=404, text=f'pod "{name}" does not exist')
        if container not in _containers(pod):
            return web.Response(status=404, text=f'container "{container}" not found in pod "{name}"')
        try:
            container_id = instance(pod, container, previous=chosen.previous)
        except LookupError as exc:
            return web.Response(status=400, text=str(exc.args[0]))
        uid = pod["metadata"]["uid"]
        path = self._paths.pod(namespace, name, uid).log(container, _restart(container_id))

        def running() -> bool:
            found = self._find(namespace, name)
            if found is None or found["metadata"]["uid"] != uid:
                return False
            status = _status(found, container)
            return bool(status and "running" in (status.get("state") or {}) and status.get("containerID") == container_id)

        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)  # at once, also when there is no output yet
        pieces = logs.read(path, chosen, running)
        try:
            async for piece in pieces:
                if piece:
                    await response.write(piece)  # waits while the reader is slow
                elif request.transport is None or request.transport.is_closing():
                    break
        except FileNotFoundError:
            await response.write(f"unable to retrieve container logs for {container_id}".encode())
        finally:
            await pieces.aclose()
        await response.write_eof()
        return response

    def _find(self, namespace: str, name: str) -> Object | None:
        for pod in self._pods():
            if pod["metadata"]["name"] == name and pod["metadata"].get("namespace") == namespace:
                return pod
        return None


def instance(pod: Object, container: str, *, previous: bool) -> str:
    """ID of the container instance whose log is meant, by upstream's rules (kubelet_pods.go, validateContainerLogStatus).

    Raises LookupError with upstream's message when there is none.
    """
    name = pod["metadata"]["name"]
    status = _status(pod, container)
    if status is None:
        raise LookupError(f'container "{container}" in pod "{name}" is not available')
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated")
    last_id = (last or {}).get("containerID", "")
    ended = LookupError(f'container "{container}" in pod "{name}" is terminated')
    if previous:
        if not last_id:
            raise LookupError(f'previous terminated container "{container}" in pod "{name}" not found')
        return str(last_id)
    if state.get("running") is not None:
        return str(status.get("containerID", ""))
    if state.get("terminated") is not None:
        found = state["terminated"].get("containerID") or last_id
        if not found:
            raise ended
        return str(found)
    if last is not None:
        if not last_id:
            raise ended
        return str(last_id)
    waiting = state.get("waiting")
    if waiting is None:
        raise LookupError(f'container "{container}" in pod "{name}" is waiting to start - no logs yet')
    reason = waiting.get("reason", "")
    words = {"ErrImagePull": "image can't be pulled", "ImagePullBackOff": "trying and failing to pull image"}.get(reason, reason)
    raise LookupError(f'container "{container}" in pod "{name}" is waiting to start: {words}')


def _restart(container_id: str) -> int:
    """Restart count in ``hpk://<uid>/<container>/<restartCount>``."""
    last = container_id.rsplit("/", 1)[-1]
    return int(last) if last.isdigit() else 0


def _containers(pod: Object) -> set[str]:
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return {container["name"] for kind in kinds for container in pod["spec"].get(kind) or []}


def _statuses(pod: Object) -> list[Object]:
    kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    return [status for kind in kinds for status in (pod.get("status") or {}).get(kind) or []]


def _status(pod: Object, container: str) -> Object | None:
    return next((status for status in _statuses(pod) if status["name"] == container), None)


def _running_containers(pod: Object) -> list[str]:
    return [status["name"] for status in _statuses(pod) if (status.get("state") or {}).get("running") is not None]


def _pod_list(pods: list[Object]) -> web.Response:
    items = [{"apiVersion": "v1", "kind": "Pod", **pod} for pod in pods]
    return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})


async def _not_implemented(request: web.Request) -> web.Response:
    what = request.path.split("/")[1]
    return web.Response(status=501, text=f"{what} is not implemented by this kubelet yet")


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def _reload(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Take a renewed certificate for the next connections."""
    seen = os.stat(certificate).st_mtime_ns
    while True:
        await asyncio.sleep(_CERTIFICATE_CHECK_SECONDS)
        try:
            changed = os.stat(certificate).st_mtime_ns
            if changed != seen:
                context.load_cert_chain(certificate, key)
                seen = changed
                log.info("serving certificate read again")
        except (OSError, ssl.SSLError) as exc:  # half renewed: next time
            log.warning("serving certificate: %s", exc)
