"""Authentication and authorization of the kubelet's API: attributes, caches. With a real API server: tests/component/test_server.py."""

from __future__ import annotations

from typing import Any

import pytest

from hpk.kube import errors
from hpk.kubelet.server import app, auth

Object = dict[str, Any]


class Played:
    def __init__(self) -> None:
        self.asked: list[Object] = []
        self.allowed = {"metrics"}

    async def create(self, path: str, body: Object) -> Object:
        self.asked.append(body["spec"])
        if body["kind"] == "TokenReview":
            token = body["spec"]["token"]
            if token == "broken":
                raise errors.Unreachable("away")
            if token != "good":
                return {"status": {"authenticated": False}}
            user = {"username": "system:serviceaccount:n:a", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}}
            return {"status": {"authenticated": True, "user": user}}
        return {"status": {"allowed": body["spec"]["resourceAttributes"]["subresource"] in self.allowed}}


CERTIFICATE = {"subject": ((("organizationName", "o1"),), (("organizationName", "o2"),), (("commonName", "me"),))}


@pytest.mark.parametrize(
    ("method", "path", "verb", "subresources"),
    [
        ("GET", "/pods", "get", ("pods", "proxy")),
        ("GET", "/runningpods/", "get", ("pods", "proxy")),
        ("GET", "/healthz/ping", "get", ("healthz", "proxy")),
        ("GET", "/stats/summary", "get", ("stats",)),
        ("GET", "/metrics/resource", "get", ("metrics",)),
        ("GET", "/metricsx", "get", ("proxy",)),
        ("GET", "/logs/", "get", ("log",)),
        ("GET", "/containerLogs/n/p/c", "get", ("proxy",)),
        ("POST", "/exec/n/p/c", "create", ("proxy",)),
        ("GET", "/pods/../exec", "get", ("pods", "proxy")),
        ("TRACE", "/pods", "", ("pods", "proxy")),
    ],
)
def test_attributes(method: str, path: str, verb: str, subresources: tuple[str, ...]) -> None:
    assert auth.Attributes.of(method, path) == auth.Attributes(verb, subresources)


async def test_certificate() -> None:
    checker = auth.Auth(Played(), "hpk")  # type: ignore[arg-type]
    user = await checker.authenticate(CERTIFICATE, "")
    assert user == auth.User("me", groups=("o1", "o2", "system:authenticated"))
    assert await checker.authenticate(None, "") is None
    assert await checker.authenticate({"subject": ((("organizationName", "system:masters"),),)}, "") is None
    assert await checker.authenticate(None, "Basic dXNlcjpwYXNz") is None


async def test_token_is_reviewed_once() -> None:
    client = Played()
    checker = auth.Auth(client, "hpk")  # type: ignore[arg-type]
    for _ in range(3):
        user = await checker.authenticate(None, "Bearer good")
        assert user is not None
        assert user.name == "system:serviceaccount:n:a"
        assert await checker.authenticate(None, "bearer bad") is None
    assert [spec["token"] for spec in client.asked] == ["good", "bad"]
    assert await checker.authenticate(None, "Bearer " + "x" * 20000) is None
    assert len(client.asked) == 2
    with pytest.raises(errors.Unreachable):
        await checker.authenticate(None, "Bearer broken")


async def test_a_certificate_comes_first() -> None:
    client = Played()
    user = await auth.Auth(client, "hpk").authenticate(CERTIFICATE, "Bearer good")  # type: ignore[arg-type]
    assert user is not None
    assert user.name == "me"
    assert client.asked == []


async def test_answers_are_kept_for_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    client = Played()
    checker = auth.Auth(client, "hpk")  # type: ignore[arg-type]
    user = auth.User("u", groups=("g",), extra='{"k": ["v"]}')
    metrics, pods = auth.Attributes("get", ("metrics",)), auth.Attributes("get", ("pods", "proxy"))
    for _ in range(2):
        assert await checker.allows(user, metrics)
        assert not await checker.allows(user, pods)
    assert [spec["resourceAttributes"]["subresource"] for spec in client.asked] == ["metrics", "pods", "proxy"]
    assert client.asked[0]["extra"] == {"k": ["v"]}
    assert client.asked[0]["resourceAttributes"]["name"] == "hpk"
    client.allowed = {"proxy"}
    now += auth.DENIED_SECONDS + 1
    assert await checker.allows(user, pods)
    assert await checker.allows(user, metrics)  # still the old answer
    now += auth.ALLOWED_SECONDS
    assert not await checker.allows(user, metrics)
    assert not await checker.allows(auth.User("other"), metrics)


def pod(state: Object, last: Object | None = None, container_id: str = "") -> Object:
    status = {"name": "c", "state": state, "lastState": last or {}, "containerID": container_id}
    return {"metadata": {"name": "p"}, "status": {"initContainerStatuses": [status]}}


ENDED = {"terminated": {"exitCode": 1, "containerID": "hpk://u/c/3"}}
NOT_STARTED = {"terminated": {"exitCode": 1}}
WAITING = {"waiting": {"reason": "CrashLoopBackOff"}}


@pytest.mark.parametrize(
    ("found", "previous", "expected"),
    [
        (pod({"running": {}}, ENDED, "hpk://u/c/4"), False, "hpk://u/c/4"),
        (pod({"running": {}}, ENDED, "hpk://u/c/4"), True, "hpk://u/c/3"),
        (pod(ENDED), False, "hpk://u/c/3"),
        (pod(NOT_STARTED, ENDED), False, "hpk://u/c/3"),
        (pod(WAITING, ENDED), False, "hpk://u/c/3"),
    ],
)
def test_instance(found: Object, previous: bool, expected: str) -> None:
    assert app.instance(found, "c", previous=previous) == expected


@pytest.mark.parametrize(
    ("found", "previous", "message"),
    [
        ({"metadata": {"name": "p"}, "status": {}}, False, 'container "c" in pod "p" is not available'),
        (pod({"running": {}}), True, 'previous terminated container "c" in pod "p" not found'),
        (pod(NOT_STARTED), False, 'container "c" in pod "p" is terminated'),
        (pod(WAITING, NOT_STARTED), False, 'container "c" in pod "p" is terminated'),
        (pod({"waiting": {"reason": "ErrImagePull"}}), False, 'container "c" in pod "p" is waiting to start: image can\'t be pulled'),
        (pod({"waiting": {"reason": "PodInitializing"}}), False, 'container "c" in pod "p" is waiting to start: PodInitializing'),
        (pod({}), False, 'container "c" in pod "p" is waiting to start - no logs yet'),
    ],
)
def test_no_instance(found: Object, previous: bool, message: str) -> None:
    with pytest.raises(LookupError) as caught:
        app.instance(found, "c", previous=previous)
    assert caught.value.args[0] == message
