"""The volumes of Pods whose content comes from the API: written before a Pod starts, kept up to date while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from hpk import errors, paths
from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors
from hpk.kubelet import objects, tokens
from hpk.kubelet.volumes import atomic, mounts, payload

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

#: Seconds in which every running Pod's volumes are looked at once (upstream's syncFrequency).
REFRESH_SECONDS = 60.0


class VolumeManager:
    """See the module. ``allocatable`` tells what a Pod's job has, for limits that its containers have not."""

    def __init__(
        self,
        *,
        client: kube_client.Client,
        paths: paths.Paths,
        allocatable: Callable[[Object, int], Mapping[str, Fraction]],
        memory: Memory,
    ) -> None:
        self._client = client
        self._paths = paths
        self._allocatable = allocatable
        self._memory = memory
        self._objects = objects.Objects(client)
        self._tokens = tokens.TokenManager(client)
        self._written: dict[str, dict[str, bytes]] = {}  # UID to volume to a hash of what was written last

    def _dir(self, pod: Object) -> paths.PodDir:
        metadata = pod["metadata"]
        return self._paths.pod(metadata["namespace"], metadata["name"], metadata["uid"])

    async def claims(self, pod: Object) -> dict[str, mounts.HostVolume]:
        """Where the PersistentVolumeClaims of the Pod are, by volume name. Raises NotReady, Rejected."""
        namespace, found = pod["metadata"]["namespace"], {}
        for volume in pod["spec"].get("volumes") or []:
            kind = payload.kind_of(volume)
            if kind not in ("persistentVolumeClaim", "ephemeral"):
                continue
            own = kind == "ephemeral"
            name = f"{pod['metadata']['name']}-{volume['name']}" if own else volume[kind]["claimName"]
            claim = await self._objects.get("persistentvolumeclaims", namespace, name)
            if claim is None:
                raise failed_mount(volume["name"], f'persistentvolumeclaim "{name}" not found')
            if own and not any(owner.get("uid") == pod["metadata"].get("uid") for owner in claim["metadata"].get("ownerReferences") or []):
                raise failed_mount(volume["name"], f'persistentvolumeclaim "{name}" was not created for this Pod')
            bound = claim["spec"].get("volumeName")
            if not bound or (claim.get("status") or {}).get("phase") != "Bound":
                raise failed_mount(volume["name"], f'persistentvolumeclaim "{name}" is not bound to a volume')
            persistent = await self._objects.get("persistentvolumes", "", bound)
            if persistent is None:
                raise failed_mount(volume["name"], f'persistentvolume "{bound}" not found')
            place = mounts.claim_volume(claim, persistent)
            read_only = not own and bool(volume[kind].get("readOnly"))
            found[volume["name"]] = mounts.HostVolume(place.path, place.type, place.read_only or read_only)
        return found

    async def write(self, pod: Object) -> None:
        """Write the Pod's configMap, secret, downwardAPI and projected volumes. Raises NotReady, errors of hpk.kube.errors, OSError."""
        for name, content in (await self._contents(pod, self._objects)).items():
            await asyncio.to_thread(atomic.write, self._dir(pod).volume(name), content)
            self._written.setdefault(pod["metadata"]["uid"], {})[name] = _hash(content)

    async def refresh(self, pod: Object, source: objects.Objects | None = None) -> bool:
        """Bring what changed to a running Pod; whether anything did. What cannot be had stays as it was, with upstream's error."""
        changed = False
        for name, content in (await self._contents(pod, source or self._objects)).items():
            written, value = self._written.setdefault(pod["metadata"]["uid"], {}), _hash(content)
            if written.get(name) != value:
                changed |= await asyncio.to_thread(atomic.write, self._dir(pod).volume(name), content, create=False)
                written[name] = value
        return changed

    async def keep_fresh(self, pods: Callable[[], Iterable[Object]]) -> None:
        """Eternal: refresh every running Pod once in REFRESH_SECONDS, evenly spread; each object is read once in a round."""
        while True:
            source = objects.Objects(self._client, remember=True)
            running = [pod for pod in pods() if _is_running(pod)]
            for pod in running:
                try:
                    if await self.refresh(pod, source):
                        log.info("[%s/%s] volumes updated", pod["metadata"]["namespace"], pod["metadata"]["name"])
                except (errors.HPKError, OSError) as exc:
                    # An object that is gone, an API server that is away, a Pod that ends just now: the next round tells.
                    log.debug("[%s/%s] %s", pod["metadata"]["namespace"], pod["metadata"]["name"], exc)
                await asyncio.sleep(REFRESH_SECONDS / len(running))
            if not running:
                await asyncio.sleep(REFRESH_SECONDS)

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a Pod that is gone."""
        self._tokens.forget(uid)
        self._written.pop(uid, None)

    async def _contents(self, pod: Object, source: objects.Objects) -> dict[str, payload.Payload]:
        written = [volume for volume in pod["spec"].get("volumes") or [] if payload.kind_of(volume) in payload.KINDS]
        namespace = pod["metadata"]["namespace"]
        needs = {volume["name"]: payload.references(volume) for volume in written}
        config_maps, secrets = await asyncio.gather(
            source.get_all("configmaps", namespace, (name for maps, _, _ in needs.values() for name, _ in maps)),
            source.get_all("secrets", namespace, (name for _, some, _ in needs.values() for name, _ in some)),
        )
        contents = {}
        for volume in written:
            given = {need: await self._token(pod, volume["name"], *need) for need in needs[volume["name"]][2]}
            allocatable = self._allocatable(pod, await self._memory(resource_refs(volume)))
            sources = payload.Sources(config_maps, secrets, _lookup(given), allocatable)
            try:
                contents[volume["name"]] = payload.build(pod, volume, sources)
            except payload.VolumeError as exc:
                raise failed_mount(volume["name"], exc.message) from exc
        return contents

    async def _token(self, pod: Object, volume: str, audience: str, seconds: int) -> str:
        async for last in objects.tries():
            try:
                return await self._tokens.get(pod, audience, seconds)
            except (kube_errors.NotFound, kube_errors.Forbidden) as exc:
                if last or isinstance(exc, kube_errors.NotFound):
                    raise failed_mount(volume, f"failed to fetch token: {exc.message}") from exc
        raise AssertionError("the last try returns or raises")


#: Asks for the node's allocatable memory in bytes, if its argument says that it is wanted.
Memory = Callable[[bool], Any]


def _lookup(tokens: Mapping[tuple[str, int], str]) -> Callable[[str, int], str]:
    return lambda audience, seconds: tokens[audience, seconds]


def _hash(content: payload.Payload) -> bytes:
    digest = hashlib.sha256()
    for path, file in sorted(content.items()):
        digest.update(f"{len(path)} {path} {file.mode} {len(file.data)} ".encode() + file.data)
    return digest.digest()


def _is_running(pod: Object) -> bool:
    """Whether the Pod has a job whose containers may read the volumes, or will."""
    has_content = any(payload.kind_of(volume) in payload.KINDS for volume in pod["spec"].get("volumes") or [])
    return has_content and (pod.get("status") or {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def resource_refs(part: Object) -> bool:
    """Whether a container or volume asks for a limit by the downward API."""
    return "'resourceFieldRef'" in repr(part) and "limits." in repr(part)


def failed_mount(volume: str, problem: str) -> errors.NotReady:
    return errors.NotReady("ContainerCreating", f'MountVolume.SetUp failed for volume "{volume}" : {problem}', event="FailedMount")
