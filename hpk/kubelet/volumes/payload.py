"""What files a configMap, secret, downwardAPI or projected volume holds. Pure.

Source: pkg/volume/{configmap,secret,downwardapi,projected}; the messages are upstream's.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from hpk import errors
from hpk.kubelet import env

Object = Mapping[str, Any]

#: Modes where the Pod names none (the API server's defaults).
DEFAULT_MODE = 0o644
#: Kinds whose content the kubelet writes.
KINDS = ("configMap", "secret", "downwardAPI", "projected")
#: Lifetime in seconds of a projected token whose source names none.
TOKEN_SECONDS = 3600


class VolumeError(errors.HPKError):
    """The volume cannot be filled now: the Event FailedMount says why, and the Pod waits."""


@dataclasses.dataclass(frozen=True)
class File:
    data: bytes
    mode: int


Payload = dict[str, File]


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the content comes from. Objects by name; a missing one is not in the mapping."""

    config_maps: Mapping[str, Object]
    secrets: Mapping[str, Object]
    token: Callable[[str, int], str]
    """(audience, seconds) to token of the Pod's service account."""
    allocatable: Mapping[str, Fraction]


def kind_of(volume: Object) -> str:
    """Which kind a volume is; emptyDir where it says nothing, as in the API."""
    return next((kind for kind, value in volume.items() if kind != "name" and value is not None), "emptyDir")


def references(volume: Object) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]], list[tuple[str, int]]]:
    """ConfigMaps and Secrets (name, optional) and tokens (audience, seconds) that a volume needs."""
    config_maps: list[tuple[str, bool]] = []
    secrets: list[tuple[str, bool]] = []
    tokens: list[tuple[str, int]] = []
    kind = kind_of(volume)
    if kind == "configMap":
        config_maps.append((volume[kind].get("name", ""), bool(volume[kind].get("optional"))))
    elif kind == "secret":
        secrets.append((volume[kind].get("secretName", ""), bool(volume[kind].get("optional"))))
    elif kind == "projected":
        for source in volume[kind].get("sources") or []:
            if source.get("configMap") is not None:
                config_maps.append((source["configMap"].get("name", ""), bool(source["configMap"].get("optional"))))
            elif source.get("secret") is not None:
                secrets.append((source["secret"].get("name", ""), bool(source["secret"].get("optional"))))
            elif source.get("serviceAccountToken") is not None:
                tokens.append(_token(source["serviceAccountToken"]))
    return config_maps, secrets, tokens


def _token(source: Object) -> tuple[str, int]:
    return source.get("audience") or "", int(source.get("expirationSeconds") or TOKEN_SECONDS)


def build(pod: Object, volume: Object, sources: Sources) -> Payload:
    """Return the files of ``volume``, paths relative to it. Raises VolumeError."""
    kind = kind_of(volume)
    body = volume[kind]
    mode = DEFAULT_MODE if body.get("defaultMode") is None else int(body["defaultMode"])
    if kind == "configMap":
        return _keys(_config_map(body, "name", sources), body, mode, "configmap references non-existent config key")
    if kind == "secret":
        return _keys(_secret(body, "secretName", sources), body, mode, "references non-existent secret key")
    if kind == "downwardAPI":
        return _downward(pod, body, mode, sources)
    payload: Payload = {}
    for source in body.get("sources") or []:
        payload.update(_projection(pod, source, mode, sources))
    return payload


def _projection(pod: Object, source: Object, mode: int, sources: Sources) -> Payload:
    if source.get("configMap") is not None:
        body = source["configMap"]
        return _keys(_config_map(body, "name", sources), body, mode, "configmap references non-existent config key")
    if source.get("secret") is not None:
        body = source["secret"]
        return _keys(_secret(body, "name", sources), body, mode, "references non-existent secret key")
    if source.get("downwardAPI") is not None:
        return _downward(pod, source["downwardAPI"], mode, sources)
    if source.get("serviceAccountToken") is not None:
        body = source["serviceAccountToken"]
        return {_clean(body["path"]): File(sources.token(*_token(body)).encode(), mode)}
    return {}  # a clusterTrustBundle that is optional


def _config_map(body: Object, field: str, sources: Sources) -> dict[str, bytes] | None:
    found = _find("configmap", body, field, sources.config_maps)
    if found is None:
        return None
    binary = {key: base64.b64decode(value or "") for key, value in (found.get("binaryData") or {}).items()}
    return {**env.config_map_data(found), **binary}


def _secret(body: Object, field: str, sources: Sources) -> dict[str, bytes] | None:
    found = _find("secret", body, field, sources.secrets)
    return None if found is None else env.secret_data(found)


def _find(kind: str, body: Object, field: str, objects: Mapping[str, Object]) -> Object | None:
    name = body.get(field, "")
    if name not in objects and not body.get("optional"):
        raise VolumeError(f'{kind} "{name}" not found')
    return objects.get(name)


def _keys(values: Mapping[str, bytes] | None, body: Object, mode: int, missing: str) -> Payload:
    if values is None:
        return {}
    if not body.get("items"):
        return {key: File(value, mode) for key, value in values.items()}
    payload: Payload = {}
    for item in body["items"]:
        if item["key"] not in values:
            if body.get("optional"):
                continue
            raise VolumeError(f"{missing}: {item['key']}")
        payload[_clean(item["path"])] = File(values[item["key"]], mode if item.get("mode") is None else int(item["mode"]))
    return payload


def _downward(pod: Object, body: Object, mode: int, sources: Sources) -> Payload:
    payload: Payload = {}
    for item in body.get("items") or []:
        try:
            if item.get("fieldRef") is not None:
                text = env.field(pod, item["fieldRef"]["fieldPath"])
            else:
                text = env.resource_field(pod, {}, item["resourceFieldRef"], sources.allocatable)
        except env.ConfigError as exc:
            raise VolumeError(exc.message) from exc
        payload[_clean(item["path"])] = File(text.encode(), mode if item.get("mode") is None else int(item["mode"]))
    return payload


def _clean(path: str) -> str:
    """A relative path in one spelling. The API server refuses others; this guards what did not come from it."""
    parts = [part for part in str(path).split("/") if part not in ("", ".")]
    if str(path).startswith("/") or ".." in parts or not parts or parts[0].startswith("..") or any("\0" in part for part in parts):
        raise VolumeError(f"invalid path {path!r}: it must be relative and stay below the volume")
    return "/".join(parts)
