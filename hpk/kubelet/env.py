"""The environment of a container, as upstream's kubelet makes it. Pure: ConfigMaps, Secrets and Services are given.

Rising priority: the image's, the service variables, ``envFrom`` in its order, ``env`` in its order. ``$(NAME)`` in a value stands
for what was set before it, or a service variable; ``$$`` is a ``$``; an unknown name stays as written.
Sources: kubelet's makeEnvironmentVariables, third_party/forked/golang/expansion, pkg/kubelet/envvars.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from hpk import errors
from hpk.kube import quantity
from hpk.kubelet import podplan

Object = Mapping[str, Any]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, lookup: Callable[[str], str | None]) -> str:
    """Replace each ``$(NAME)`` by ``lookup(NAME)`` (None: leave it as written) and ``$$`` by ``$``."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        found = lookup(name)
        return match.group() if found is None else found

    return _REFERENCE.sub(value, text)


class ConfigError(errors.HPKError):
    """The environment cannot be made; the container waits as CreateContainerConfigError with this message."""


def service_variables(services: Iterable[Object], namespace: str, *, links: bool, api_server: tuple[str, int] | None) -> dict[str, str]:
    """Return Docker-style variables of the Services that a Pod sees: its namespace's if ``links``, and default/kubernetes always.

    ``api_server`` (address, port) replaces the cluster address of default/kubernetes, where that does not lead anywhere.
    """
    seen: dict[str, Object] = {}
    for service in services:
        name, home = service["metadata"]["name"], service["metadata"]["namespace"]
        if service["spec"].get("clusterIP") in (None, "", "None"):
            continue
        if home == "default" and name == "kubernetes":
            seen.setdefault(name, service)
        elif home == namespace and links:
            seen[name] = service
    variables: dict[str, str] = {}
    if "kubernetes" not in seen and api_server is not None:
        seen["kubernetes"] = {"spec": {"clusterIP": api_server[0], "ports": [{"name": "https", "port": api_server[1]}]}}
    for name, service in sorted(seen.items()):
        address, ports = service["spec"]["clusterIP"], service["spec"].get("ports") or []
        if name == "kubernetes" and api_server is not None:
            address = api_server[0]
            ports = [{**port, "port": api_server[1]} for port in ports[:1]]
        variables.update(_one_service(name, address, ports))
    return variables


def _one_service(name: str, address: str, ports: list[Object]) -> dict[str, str]:
    if not ports:
        return {}
    prefix = name.upper().replace("-", "_")
    variables = {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(ports[0]["port"])}
    host = f"[{address}]" if ":" in address else address
    for number, port in enumerate(ports):
        protocol = port.get("protocol") or "TCP"
        url = f"{protocol.lower()}://{host}:{port['port']}"
        if port.get("name"):
            variables[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
        if number == 0:
            variables[f"{prefix}_PORT"] = url
        link = f"{prefix}_PORT_{port['port']}_{protocol.upper()}"
        variables[link] = url
        variables[f"{link}_PROTO"] = protocol.lower()
        variables[f"{link}_PORT"] = str(port["port"])
        variables[f"{link}_ADDR"] = address
    return variables


def container_env(
    pod: Object,
    container: Object,
    *,
    config_maps: Mapping[str, Object],
    secrets: Mapping[str, Object],
    services: Mapping[str, str],
    allocatable: Mapping[str, Fraction],
) -> dict[str, str]:
    """Return what the Pod sets: envFrom, env and service variables. Objects by name; a missing one is just not there.

    ``allocatable`` stands in for limits that a container has not (resourceFieldRef). Raises ConfigError in upstream's words.
    """
    namespace = pod["metadata"]["namespace"]
    result: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        values: Mapping[str, bytes] = {}
        if source.get("configMapRef") is not None and (found := _object("configmap", source["configMapRef"], config_maps)) is not None:
            values = config_map_data(found)
        elif source.get("secretRef") is not None and (found := _object("secret", source["secretRef"], secrets)) is not None:
            values = secret_data(found)
        result.update({f"{source.get('prefix') or ''}{key}": _text(value, key) for key, value in values.items()})

    def lookup(name: str) -> str | None:
        return result.get(name, services.get(name))

    for variable in container.get("env") or []:
        value = str(variable.get("value") or "")
        source = variable.get("valueFrom") or {}
        if value:
            value = expand(value, lookup)
        elif "fieldRef" in source:
            value = field(pod, source["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in source:
            value = resource_field(pod, container, source["resourceFieldRef"], allocatable)
        elif "configMapKeyRef" in source or "secretKeyRef" in source:
            found_value = _key(source, config_maps, secrets, namespace)
            if found_value is None:
                continue
            value = found_value
        result[variable["name"]] = value
    return {**services, **result}


def _object(kind: str, ref: Object, objects: Mapping[str, Object]) -> Object | None:
    name = ref.get("name", "")
    if name not in objects and not ref.get("optional"):
        raise ConfigError(f'{kind} "{name}" not found')
    return objects.get(name)


def _key(source: Object, config_maps: Mapping[str, Object], secrets: Mapping[str, Object], namespace: str) -> str | None:
    if "configMapKeyRef" in source:
        ref, kind = source["configMapKeyRef"], "ConfigMap"
        found = _object("configmap", ref, config_maps)
        values = {} if found is None else config_map_data(found)
    else:
        ref, kind = source["secretKeyRef"], "Secret"
        found = _object("secret", ref, secrets)
        values = {} if found is None else secret_data(found)
    if ref["key"] in values:
        return _text(values[ref["key"]], ref["key"])
    if not ref.get("optional"):
        raise ConfigError(f"couldn't find key {ref['key']} in {kind} {namespace}/{ref['name']}")
    return None


def _text(value: bytes, key: str) -> str:
    if b"\0" in value:
        raise ConfigError(f"the value of key {key} holds a NUL byte, which no environment variable can")
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the value of key {key} is not valid UTF-8; mount it as a file instead") from exc


def config_map_data(config_map: Object) -> dict[str, bytes]:
    """The texts of a ConfigMap; its binaryData never become variables."""
    return {key: str(value).encode() for key, value in (config_map.get("data") or {}).items()}


def secret_data(secret: Object) -> dict[str, bytes]:
    """The values of a Secret, decoded; stringData as a manifest that has not met the API server may have them."""
    decoded = {key: base64.b64decode(value or "") for key, value in (secret.get("data") or {}).items()}
    return {**decoded, **{key: str(value).encode() for key, value in (secret.get("stringData") or {}).items()}}


def field(pod: Object, path: str) -> str:
    """Return the value of a downward API field. Addresses are texts that the job fills in. Raises ConfigError."""
    metadata, spec = pod["metadata"], pod["spec"]
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.*)'\]", path)
    if match:
        return str((metadata.get(match.group(1)) or {}).get(match.group(2), ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return format_map(metadata.get(path.split(".")[1]) or {})
    if path in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return str(metadata.get(path.split(".")[1], ""))
    if path == "spec.nodeName":
        return str(spec.get("nodeName", ""))
    if path == "spec.serviceAccountName":
        return str(spec.get("serviceAccountName") or "default")
    if path in ("status.podIP", "status.podIPs"):
        return podplan.POD_IP
    if path in ("status.hostIP", "status.hostIPs"):
        return podplan.HOST_IP
    raise ConfigError(f"unsupported fieldPath: {path}")


def format_map(values: Mapping[str, str]) -> str:
    """One ``key="value"`` a line, sorted, values quoted as Go does (what files of metadata.labels hold)."""
    return "\n".join(f"{key}={_go_quote(str(value))}" for key, value in sorted(values.items()))


_GO_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\", '"': '\\"'}


def _go_quote(text: str) -> str:
    out = []
    for char in text:
        code = ord(char)
        if char in _GO_ESCAPES:
            out.append(_GO_ESCAPES[char])
        elif char == " " or (char.isprintable() and not char.isspace()):
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def resource_field(pod: Object, container: Object, ref: Object, allocatable: Mapping[str, Fraction]) -> str:
    """Return the value of a resourceFieldRef in units of its divisor, rounded up. Raises ConfigError."""
    spec = pod["spec"]
    name = ref.get("containerName")
    if name:
        everyone = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
        container = next((item for item in everyone if item["name"] == name), {})
        if not container:
            raise ConfigError(f"container {name} not found")
    kind, _, resource = ref["resource"].partition(".")
    if kind not in ("limits", "requests") or not resource:
        raise ConfigError(f"unsupported container resource : {ref['resource']}")
    listed = container.get("resources") or {}
    limits, requested = listed.get("limits") or {}, listed.get("requests") or {}
    if kind == "limits":
        value = quantity.parse(limits[resource]) if resource in limits else allocatable.get(resource, Fraction(0))
    else:
        value = quantity.parse(requested.get(resource, limits.get(resource, 0)))
    divisor = quantity.parse(ref.get("divisor") or 1) or Fraction(1)
    if resource == "cpu":  # counted in millicores, as a divisor of 1m says
        return str(math.ceil(Fraction(quantity.milli(value), quantity.milli(divisor))))
    return str(math.ceil(Fraction(quantity.ceil(value), quantity.ceil(divisor))))
