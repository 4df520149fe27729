"""``hpk render pod.yaml``: print the job script of a Pod without submitting it, or touching anything.

Takes Pods and what holds a Pod template (Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob), several documents too.
The cluster is asked only for what the script itself needs: ConfigMaps and Secrets whose values stand in a command line, and
claims. Images are not pulled; what the registry says of them is enough.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import yaml

from hpk import config as configuration
from hpk import errors, files, paths
from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors
from hpk.kubelet import admission, credentials, env, images, plan, prepare, script
from hpk.kubelet.volumes import mounts, payload

#: Where the Pod is inside objects of other kinds.
_TEMPLATES = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
#: Stands where the UID of a real Pod would be.
_UID = "rendered"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="YAML with a Pod, or a Deployment, Job, ... whose template is taken; - for standard input")
    parser.add_argument("-n", "--namespace", default="", help="namespace where the file names none (default: default)")
    parser.add_argument("--offline", action="store_true", help="ask neither the cluster nor registries")


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    config = configuration.load(where)
    pods = list(read_pods(_read(args.file), args.file, args.namespace or "default"))
    for number, pod in enumerate(pods):
        if number:
            print(f"\n# ---- next Pod: {pod['metadata']['name']}")
        print(await render(pod, config, where, offline=args.offline), end="")
    return 0


def _read(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read()
        with open(name, encoding="utf-8") as file:
            return file.read()
    except OSError as exc:
        raise errors.InvalidInput(f"{name}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise errors.InvalidInput(f"{name}: is not UTF-8 text") from exc


def read_pods(text: str, name: str, namespace: str) -> Iterator[dict[str, Any]]:
    """Yield the Pods of a YAML text, with the defaults that a script depends on. Raises InvalidInput naming file and field."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as exc:
        raise errors.InvalidInput(f"{name}: is not YAML: {' '.join(str(exc).split())}") from exc
    found = False
    for document in documents:
        items = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else [document]
        for item in items or []:
            if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
                raise errors.InvalidInput(f"{name}: a Kubernetes object with `kind` is expected")
            if item["kind"] in _TEMPLATES:
                found = True
                yield _pod(item, name, namespace)
    if not found:
        kinds = ", ".join(sorted({str(item.get("kind")) for item in documents if isinstance(item, dict)})) or "nothing"
        raise errors.InvalidInput(f"{name}: holds no Pod (found: {kinds})", hint=f"known kinds: {', '.join(_TEMPLATES)}")


def _pod(item: dict[str, Any], name: str, namespace: str) -> dict[str, Any]:
    template: Any = item
    for key in _TEMPLATES[item["kind"]]:
        template = template.get(key) if isinstance(template, dict) else None
    where = ".".join(_TEMPLATES[item["kind"]])
    if not isinstance(template, dict):
        raise errors.InvalidInput(f"{name}: {where}: is missing")
    outer, own = item.get("metadata") or {}, template.get("metadata") or {}
    spec = template.get("spec")
    path = f"{where}.spec".lstrip(".")
    if not isinstance(spec, dict):
        raise errors.InvalidInput(f"{name}: {path}: is missing")
    if not isinstance(outer, dict) or not isinstance(own, dict):
        raise errors.InvalidInput(f"{name}: metadata: a mapping is expected")
    _check(spec, f"{name}: {path}")
    called = own.get("name") or outer.get("name") or outer.get("generateName")
    if not called:
        raise errors.InvalidInput(f"{name}: metadata.name: is missing")
    metadata = {**own, "name": str(called), "namespace": outer.get("namespace") or namespace, "uid": outer.get("uid") or _UID}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {}}


def _check(spec: Mapping[str, Any], where: str) -> None:
    """The few things without which nothing can be said about a Pod; the API server checks the rest."""
    if not isinstance(spec.get("containers"), list) or not spec["containers"]:
        raise errors.InvalidInput(f"{where}.containers: at least one container is expected")
    for field in ("initContainers", "containers", "volumes"):
        items = spec.get(field) or []
        if not isinstance(items, list):
            raise errors.InvalidInput(f"{where}.{field}: a list is expected")
        for number, item in enumerate(items):
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise errors.InvalidInput(f"{where}.{field}[{number}].name: is missing")
            if field == "volumes":
                continue
            if not isinstance(item.get("image"), str):
                raise errors.InvalidInput(f"{where}.{field}[{number}].image: is missing")
            for part in ("command", "args"):
                if not isinstance(item.get(part) or [], list):
                    raise errors.InvalidInput(f"{where}.{field}[{number}].{part}: a list is expected")


async def render(pod: dict[str, Any], config: configuration.Config, where: paths.Paths, *, offline: bool = False) -> str:
    """Return the script that ``pod`` would become. Raises InvalidInput, NotReady, APIError."""
    admission.check(pod, config)
    manager = images.ImageManager(config=config, paths=where)
    found: dict[str, images.ImageInfo] = {}
    for _, container in admission.containers(pod["spec"]):
        found[container["name"]] = await _image(manager, container["image"], offline)
    namespace = pod["metadata"]["namespace"]
    maps, secrets = prepare.env_references(pod)
    volumes = [volume for volume in pod["spec"].get("volumes") or [] if payload.kind_of(volume) in ("persistentVolumeClaim", "ephemeral")]
    objects: dict[str, dict[str, Any]] = {"configmaps": {}, "secrets": {}}
    claims: dict[str, mounts.HostVolume] = {}
    services: list[Mapping[str, Any]] = []
    server = prepare.api_server(where, "")
    async with _cluster(where, offline) as client:
        if client is None and (maps or secrets or volumes):
            names = sorted([*maps, *secrets, *(volume["name"] for volume in volumes)])
            raise errors.InvalidInput(
                f"the Pod refers to {', '.join(names)}, and there is no cluster to ask",
                hint="start it with `hpk up`, and leave out --offline",
            )
        if client is not None:
            server = prepare.api_server(where, client.server)
            for kind, wanted in (("configmaps", maps), ("secrets", secrets)):
                for name in wanted:
                    with contextlib.suppress(kube_errors.NotFound):
                        objects[kind][name] = await client.get(kube_client.path("v1", kind, namespace, name))
            for volume in volumes:
                claims[volume["name"]] = await _claim(client, pod, volume)
            services = (await client.list(kube_client.path("v1", "services", namespace)))["items"]
    links = pod["spec"].get("enableServiceLinks")
    resolved = plan.Resolved(
        images=found,
        config_maps=objects["configmaps"],
        secrets=objects["secrets"],
        services=env.service_variables(services, namespace, links=links is None or bool(links), api_server=server),
        claims=claims,
        resolv_conf=prepare.read_text("/etc/resolv.conf"),
    )
    return script.job_script(plan.build(pod, resolved, config=config, where=where))


@contextlib.asynccontextmanager
async def _cluster(where: paths.Paths, offline: bool) -> AsyncIterator[kube_client.Client | None]:
    """The user's cluster, None when there is none or it does not answer."""
    try:
        running = None if offline else files.read_json(where.cluster_run)
    except (ValueError, OSError):
        running = None
    if not running:
        yield None
        return
    async with kube_client.Client.from_kubeconfig(where.kubeconfig, user_agent="hpk-render") as client:
        try:
            await asyncio.wait_for(client.get("/version"), 5)
            answers = True
        except (errors.APIError, asyncio.TimeoutError, TimeoutError):
            answers = False
        yield client if answers else None


async def _image(manager: images.ImageManager, image: str, offline: bool) -> images.ImageInfo:
    try:
        return await manager.peek(image, ask=not offline, keyrings=[credentials.own()])
    except errors.HPKError as exc:
        print(f"hpk: warning: image {image}: {exc.message}; its entrypoint and environment are left out", file=sys.stderr)
        return images.ImageInfo(image, image, manager.unknown(image), {"Entrypoint": ["ENTRYPOINT-OF-THE-IMAGE"]})


async def _claim(client: kube_client.Client, pod: Mapping[str, Any], volume: Mapping[str, Any]) -> mounts.HostVolume:
    own = volume.get("ephemeral") is not None
    name = f"{pod['metadata']['name']}-{volume['name']}" if own else volume["persistentVolumeClaim"]["claimName"]
    claim = await client.get(kube_client.path("v1", "persistentvolumeclaims", pod["metadata"]["namespace"], name))
    bound = claim["spec"].get("volumeName")
    if not bound:
        raise errors.InvalidInput(f'persistentvolumeclaim "{name}" is not bound to a volume')
    return mounts.claim_volume(claim, await client.get(kube_client.path("v1", "persistentvolumes", None, bound)))
