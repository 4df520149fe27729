"""Everything that a Pod's job needs, brought to its folder: the I/O around plan.py.

In upstream's order: volumes (FailedMount, the Pod stays ContainerCreating), images (ErrImagePull, ...), then the containers'
configuration (CreateContainerConfigError). Each call does all of it again and changes only what differs, so it may be repeated
after any crash, and a ConfigMap that appears later is found by the next call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpk import config as configuration
from hpk import errors, files, paths
from hpk.kube import client as kube_client
from hpk.kube import events, quantity, store
from hpk.kubelet import admission, credentials, env, images, objects, plan, podplan, resources, script
from hpk.kubelet.volumes import manager, mounts

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

#: Pods whose objects are fetched and whose files are written at the same time.
PARALLEL = 64
#: Handlers of RuntimeClasses that mean the runtime there is.
RUNTIME_HANDLERS = ("apptainer", "singularity")
#: How long a Pod waits for the list of Services, which is needed for its environment.
_SERVICES_TIMEOUT = 10.0


class Preparer:
    """See the module. One per kubelet; calls for different Pods may run at the same time."""

    def __init__(
        self,
        *,
        client: kube_client.Client,
        config: configuration.Config,
        paths: paths.Paths,
        recorder: events.Recorder | None,
        images: images.ImageManager,
        services: store.Store | None,
    ) -> None:
        self._client = client
        self._config = config
        self._paths = paths
        self._recorder = recorder
        self._images = images
        self._services = services
        self._objects = objects.Objects(client)
        self.volumes = manager.VolumeManager(
            client=client,
            paths=paths,
            allocatable=lambda pod, memory: plan.allocatable(resources.job(pod, config), memory),
            memory=self._node_memory,
        )
        self._slots = asyncio.Semaphore(PARALLEL)

    async def prepare(self, pod: dict[str, Any]) -> podplan.PodPlan:
        """Write what the job needs below the Pod's folder and return the plan. Raises NotReady and Rejected."""
        metadata, spec = pod["metadata"], pod["spec"]
        pod_dir = self._paths.pod(metadata["namespace"], metadata["name"], metadata["uid"])
        try:
            async with self._slots:
                if spec.get("runtimeClassName"):
                    await self._check_runtime_class(spec["runtimeClassName"])
                _make_folders(spec, pod_dir)
                claims = await self.volumes.claims(pod)
                await self.volumes.write(pod)
                keyrings = await self._keyrings(pod)
            found = await self._pull(pod, keyrings)  # holds no slot: a registry that hangs must not hold up other Pods
            async with self._slots:
                resolved = await self._resolve(pod, found, claims)
                result = plan.build(pod, resolved, config=self._config, where=self._paths)
                text = plan.resolv_conf(pod, resolved)
                if text is not None:
                    files.write_atomic(os.path.join(pod_dir.etc, "resolv.conf"), text, mode=0o644)
                for planned in (*result.init_containers, *result.containers):
                    files.write_atomic(pod_dir.env(planned.name), script.env_file(planned))
        except errors.APIError as exc:
            raise errors.NotReady("ContainerCreating", exc.message, event="FailedMount") from exc
        except OSError as exc:  # full, over quota, read-only: may pass
            message = f"cannot write the Pod's files: {exc.strerror or exc}: {exc.filename or pod_dir.root}"
            raise errors.NotReady("ContainerCreating", message, event="FailedMount") from exc
        return result

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a Pod that is gone."""
        self.volumes.forget(uid)
        self._images.forget(uid)

    async def _check_runtime_class(self, name: str) -> None:
        """There is one runtime: a class asks for another unless its handler is named as that one."""
        path = kube_client.path("node.k8s.io/v1", "runtimeclasses", None, name)
        try:
            handler = str((await self._client.get(path)).get("handler"))
        except errors.APIError as exc:
            raise errors.NotReady(
                "ContainerCreating", f"Failed to get runtime class: {exc.message}", event="FailedCreatePodSandBox"
            ) from exc
        if handler not in RUNTIME_HANDLERS:
            message = f'Failed to create pod sandbox: no runtime for "{handler}" is configured (there is: {", ".join(RUNTIME_HANDLERS)})'
            raise errors.NotReady("ContainerCreating", message, event="FailedCreatePodSandBox")

    async def _node_memory(self, wanted: bool) -> int:
        """Allocatable memory of the node in bytes, asked for only when a field wants it."""
        if not wanted:
            return 0
        node = await self._objects.get("nodes", "", self._config.cluster.node_name)
        return quantity.ceil(((node or {}).get("status") or {}).get("allocatable", {}).get("memory", 0))

    # -- images --------------------------------------------------------------------------------------------------------

    async def _pull(self, pod: dict[str, Any], keyrings: Sequence[Mapping[str, credentials.Credential]]) -> dict[str, images.ImageInfo]:
        """Return the images by container name; containers with the same image and policy share one pull."""
        containers = list(admission.containers(pod["spec"]))
        answers = await asyncio.gather(
            *(
                self._images.ensure(
                    container.get("image") or "",
                    policy=container.get("imagePullPolicy") or default_policy(container.get("image") or ""),
                    pull_secrets=keyrings,
                    on_event=self._on_event(pod, where, container["name"]),
                    backoff_key=pod["metadata"]["uid"],
                    container=container["name"],
                )
                for where, container in containers
            ),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if not self._images.keep(answer for answer in answers if isinstance(answer, images.ImageInfo)):
            raise errors.NotReady("ContainerCreating", "an image was removed while another was pulled", event="")
        return {container["name"]: answer for (_, container), answer in zip(containers, answers, strict=True)}  # type: ignore[misc]

    async def _keyrings(self, pod: dict[str, Any]) -> Sequence[Mapping[str, credentials.Credential]]:
        """Credentials of the Pod's imagePullSecrets (the API server has added the service account's to them)."""
        names = [ref.get("name", "") for ref in pod["spec"].get("imagePullSecrets") or []]
        found = await self._objects.get_all("secrets", pod["metadata"]["namespace"], names)
        missing = [name for name in names if name and name not in found]
        if missing and self._recorder is not None:
            message = f"Unable to retrieve some image pull secrets ({', '.join(missing)}); attempting to pull the image may not succeed."
            self._recorder.event(pod, "Warning", "FailedToRetrieveImagePullSecret", message)
        return [credentials.of_secret(found[name]) for name in names if name in found]

    def _on_event(self, pod: dict[str, Any], where: str, name: str) -> Callable[[str, str, str], None]:
        field = f"{where.split('[')[0]}{{{name}}}"  # as upstream: spec.containers{main}

        def record(kind: str, reason: str, message: str) -> None:
            if self._recorder is not None:
                self._recorder.event(pod, kind, reason, message, field_path=field)

        return record

    # -- environment ---------------------------------------------------------------------------------------------------

    async def _resolve(self, pod: Object, found: Mapping[str, images.ImageInfo], claims: Mapping[str, mounts.HostVolume]) -> plan.Resolved:
        namespace = pod["metadata"]["namespace"]
        maps, some = env_references(pod)
        config_maps, secret_objects, memory = await asyncio.gather(
            self._objects.get_all("configmaps", namespace, maps),
            self._objects.get_all("secrets", namespace, some),
            self._node_memory(any(manager.resource_refs(container) for _, container in admission.containers(pod["spec"]))),
        )
        if self._services is not None:
            try:
                await asyncio.wait_for(self._services.synced(), _SERVICES_TIMEOUT)
            except (asyncio.TimeoutError, TimeoutError) as exc:
                raise errors.NotReady(
                    "CreateContainerConfigError",
                    "services have not yet been read at least once, cannot construct envvars",
                    container=next(name for name in found),
                    event="Failed",
                ) from exc
        links = pod["spec"].get("enableServiceLinks")
        services = env.service_variables(
            self._services.list() if self._services is not None else [],
            namespace,
            links=links is None or bool(links),
            api_server=self._api_server(),
        )
        return plan.Resolved(
            images=found,
            config_maps=config_maps,
            secrets=secret_objects,
            services=services,
            claims=claims,
            resolv_conf=read_text("/etc/resolv.conf"),
            node_memory=memory,
        )

    def _api_server(self) -> tuple[str, int] | None:
        """Address and port at which a Pod reaches the API server, while service addresses lead nowhere."""
        if self._config.cluster.network != "host":
            return None
        return api_server(self._paths, self._client.server)


def _make_folders(spec: Object, pod_dir: paths.PodDir) -> None:
    for folder in (pod_dir.root, pod_dir.etc, os.path.dirname(pod_dir.env("x")), os.path.dirname(pod_dir.volume("x"))):
        files.private_dir(folder)
    for _, container in admission.containers(spec):
        files.private_dir(pod_dir.container(container["name"]))
    if not os.path.exists(pod_dir.token):
        files.write_atomic(pod_dir.token, secrets.token_urlsafe(32) + "\n")


def api_server(where: paths.Paths, fallback: str) -> tuple[str, int] | None:
    """Address and port of the API server as other nodes reach it."""
    try:
        known = files.read_json(where.cluster_run) or {}
    except (ValueError, OSError):
        known = {}
    parts = urllib.parse.urlsplit(str(known.get("apiServer") or fallback))
    return (parts.hostname, parts.port or 443) if parts.hostname else None


def default_policy(image: str) -> str:
    """The pull policy of an image that names none: as the API server's defaulting."""
    last = image.rsplit("/", 1)[-1]
    return "IfNotPresent" if "@" in last or (":" in last and not last.endswith(":latest")) else "Always"


def env_references(pod: Object) -> tuple[set[str], set[str]]:
    """Names of the ConfigMaps and of the Secrets that the containers' environments refer to."""
    maps: set[str] = set()
    some: set[str] = set()
    for _, container in admission.containers(pod["spec"]):
        for source in container.get("envFrom") or []:
            for field, names in (("configMapRef", maps), ("secretRef", some)):
                if source.get(field) is not None:
                    names.add(source[field].get("name", ""))
        for variable in container.get("env") or []:
            source = variable.get("valueFrom") or {}
            for field, names in (("configMapKeyRef", maps), ("secretKeyRef", some)):
                if source.get(field) is not None:
                    names.add(source[field].get("name", ""))
    return maps, some


def read_text(path: str) -> str:
    """A small file of the node; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def remove(pod_dir: paths.PodDir) -> None:
    """Remove all that prepare() and the job left of a Pod. Read-only folders of a container are no hindrance."""

    def force(function: Callable[..., Any], path: str, _: Any) -> None:
        try:
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700)
            function(path)
        except OSError as exc:
            log.warning("cannot remove %s: %s", path, exc.strerror)

    if os.path.isdir(pod_dir.root):
        shutil.rmtree(pod_dir.root, onerror=force)
