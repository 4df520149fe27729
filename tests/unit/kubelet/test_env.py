import base64
from fractions import Fraction
from typing import Any

import pytest

from hpk.kubelet import env, podplan

POD: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "prod", "uid": "u-1", "labels": {"app": "web"}, "annotations": {"note": 'a "b"\n', "z": "é"}},
    "spec": {"nodeName": "hpk", "containers": [{"name": "main"}, {"name": "other", "resources": {"limits": {"cpu": "1500m"}}}]},
}
CONFIG = {"cfg": {"kind": "ConfigMap", "data": {"a": "1", "b-b.c": "2"}, "binaryData": {"bin": "AA=="}}}
SECRETS = {"sec": {"kind": "Secret", "data": {"pw": base64.b64encode(b"p$ss\n").decode(), "nul": base64.b64encode(b"a\0b").decode()}}}
ALLOCATABLE = {"cpu": Fraction(4), "memory": Fraction(2**31)}


def make(container: dict[str, Any], services: dict[str, str] | None = None) -> dict[str, str]:
    return env.container_env(
        POD, {"name": "main", **container}, config_maps=CONFIG, secrets=SECRETS, services=services or {}, allocatable=ALLOCATABLE
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$(A)", "x"),
        ("a$(A)b$(B)c", "axb$(B)c"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$x"),
        ("$$$$(A)", "$$(A)"),
        ("$A $ $", "$A $ $"),
        ("$(A", "$(A"),
        ("$((A)", "$((A)"),
        ("$()", "empty"),
        ("$", "$"),
        ("$$", "$"),
        ("$(A)$$(A)", "x$(A)"),
        ("$(foo $(A))", "$(foo $(A))"),
        ("line\n$(A)", "line\nx"),
    ],
)
def test_expansion(text: str, value: str) -> None:
    assert env.expand(text, {"A": "x", "": "empty"}.get) == value


def test_order_and_references() -> None:
    result = make(
        {
            "envFrom": [{"configMapRef": {"name": "cfg"}}, {"prefix": "S_", "secretRef": {"name": "sec2", "optional": True}}],
            "env": [
                {"name": "a", "value": "over-$(a)-$(LATER)-$(SVC)"},
                {"name": "LATER", "value": "$(a)"},
                {"name": "SVC2", "value": "$$(a)"},
                {"name": "empty"},
            ],
        },
        {"SVC": "10.96.0.1", "b-b.c": "hidden"},
    )
    assert result == {
        "SVC": "10.96.0.1",
        "a": "over-1-$(LATER)-10.96.0.1",
        "b-b.c": "2",
        "LATER": "over-1-$(LATER)-10.96.0.1",
        "SVC2": "$(a)",
        "empty": "",
    }


def test_values_from_keys() -> None:
    result = make(
        {
            "env": [
                {"name": "P", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pw"}}},
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "a"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "nope", "optional": True}}},
                {"name": "O2", "valueFrom": {"secretKeyRef": {"name": "nope", "key": "x", "optional": True}}},
            ]
        }
    )
    assert result == {"P": "p$ss\n", "A": "1"}


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"envFrom": [{"configMapRef": {"name": "no"}}]}, 'configmap "no" not found'),
        ({"envFrom": [{"secretRef": {"name": "no"}}]}, 'secret "no" not found'),
        ({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]}, 'configmap "no" not found'),
        (
            {"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "bin"}}}]},
            "couldn't find key bin in ConfigMap prod/cfg",
        ),
        ({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}, "couldn't find key k in Secret prod/sec"),
        ({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "nul"}}}]}, "NUL byte"),
        ({"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.replicas"}}}]}, "unsupported fieldPath: spec.replicas"),
        (
            {"env": [{"name": "X", "valueFrom": {"resourceFieldRef": {"containerName": "gone", "resource": "limits.cpu"}}}]},
            "container gone not found",
        ),
    ],
)
def test_errors_name_what_is_missing(container: dict[str, Any], message: str) -> None:
    with pytest.raises(env.ConfigError, match=message):
        make(container)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "prod"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['note']", 'a "b"\n'),
        ("metadata.labels", 'app="web"'),
        ("metadata.annotations", 'note="a \\"b\\"\\n"\nz="é"'),
        ("spec.nodeName", "hpk"),
        ("spec.serviceAccountName", "default"),
        ("status.podIP", podplan.POD_IP),
        ("status.hostIPs", podplan.HOST_IP),
    ],
)
def test_fields(path: str, value: str) -> None:
    assert env.field(POD, path) == value


def test_go_quoting() -> None:
    assert env.format_map({"k": "\x01\u200b\U0001f600\t"}) == 'k="\\x01\\u200b\U0001f600\\t"'


@pytest.mark.parametrize(
    ("ref", "value"),
    [
        ({"resource": "limits.cpu"}, "4"),  # none set: what the job has
        ({"resource": "requests.cpu"}, "0"),
        ({"resource": "limits.memory", "divisor": "1Mi"}, "2048"),
        ({"resource": "limits.cpu", "containerName": "other"}, "2"),
        ({"resource": "limits.cpu", "containerName": "other", "divisor": "1m"}, "1500"),
        ({"resource": "requests.cpu", "containerName": "other", "divisor": "1m"}, "1500"),
        ({"resource": "limits.cpu", "divisor": "0"}, "4"),
    ],
)
def test_resource_fields(ref: dict[str, str], value: str) -> None:
    assert env.resource_field(POD, POD["spec"]["containers"][0], ref, ALLOCATABLE) == value


def service(namespace: str, name: str, address: str | None, *ports: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": address, "ports": list(ports)}}


SERVICES = [
    service("default", "kubernetes", "10.96.0.1", {"name": "https", "port": 443, "protocol": "TCP"}),
    service("prod", "my-db", "10.96.0.7", {"name": "sql-1", "port": 5432}, {"name": "udp", "port": 53, "protocol": "UDP"}),
    service("prod", "headless", "None", {"port": 1}),
    service("other", "hidden", "10.96.0.9", {"port": 1}),
]


def test_service_variables() -> None:
    assert env.service_variables(SERVICES, "prod", links=True, api_server=("192.0.2.5", 6443)) == {
        "KUBERNETES_SERVICE_HOST": "192.0.2.5",
        "KUBERNETES_SERVICE_PORT": "6443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "6443",
        "KUBERNETES_PORT": "tcp://192.0.2.5:6443",
        "KUBERNETES_PORT_6443_TCP": "tcp://192.0.2.5:6443",
        "KUBERNETES_PORT_6443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_6443_TCP_PORT": "6443",
        "KUBERNETES_PORT_6443_TCP_ADDR": "192.0.2.5",
        "MY_DB_SERVICE_HOST": "10.96.0.7",
        "MY_DB_SERVICE_PORT": "5432",
        "MY_DB_SERVICE_PORT_SQL_1": "5432",
        "MY_DB_SERVICE_PORT_UDP": "53",
        "MY_DB_PORT": "tcp://10.96.0.7:5432",
        "MY_DB_PORT_5432_TCP": "tcp://10.96.0.7:5432",
        "MY_DB_PORT_5432_TCP_PROTO": "tcp",
        "MY_DB_PORT_5432_TCP_PORT": "5432",
        "MY_DB_PORT_5432_TCP_ADDR": "10.96.0.7",
        "MY_DB_PORT_53_UDP": "udp://10.96.0.7:53",
        "MY_DB_PORT_53_UDP_PROTO": "udp",
        "MY_DB_PORT_53_UDP_PORT": "53",
        "MY_DB_PORT_53_UDP_ADDR": "10.96.0.7",
    }


def test_service_links_off_leaves_the_api_server() -> None:
    names = env.service_variables(SERVICES, "prod", links=False, api_server=None)
    assert names["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert not [name for name in names if not name.startswith("KUBERNETES_")]


def test_api_server_is_named_before_its_service_exists() -> None:
    names = env.service_variables([], "prod", links=True, api_server=("::1", 6443))
    assert names["KUBERNETES_SERVICE_HOST"] == "::1"
    assert names["KUBERNETES_PORT"] == "tcp://[::1]:6443"
