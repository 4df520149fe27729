"""Who asks the kubelet, and may they? As upstream's kubelet with webhook authentication and authorization.

Authentication: a client certificate that the cluster's CA signed (common name = user, organizations = groups), or a bearer token
that the API server reviews. Nobody is anonymous. Authorization: the API server is asked (SubjectAccessReview) for the same
attributes of resource ``nodes`` as upstream asks (pkg/kubelet/server/auth.go). Answers are kept for upstream's times.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from hpk.kube import client as kube_client

#: Seconds that answers are believed: KubeletConfiguration's defaults, and a short time for tokens that were refused.
TOKEN_SECONDS = 120.0
REFUSED_TOKEN_SECONDS = 10.0
ALLOWED_SECONDS = 300.0
DENIED_SECONDS = 30.0
MAX_CACHE = 1024
MAX_TOKEN = 16 * 1024

_VERBS = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
#: First path segment to subresources that allow it: the fine-grained one, else what upstream's default branch says.
_SUBRESOURCES = {
    "pods": ("pods", "proxy"),
    "runningpods": ("pods", "proxy"),
    "healthz": ("healthz", "proxy"),
    "configz": ("configz", "proxy"),
    "stats": ("stats",),
    "metrics": ("metrics",),
    "logs": ("log",),
    "checkpoint": ("checkpoint",),
    "statusz": ("statusz",),
    "flagz": ("configz",),
}

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclasses.dataclass(frozen=True)
class User:
    """Somebody who proved who they are. ``extra`` is JSON text, so that a User can be a key."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: str = "{}"


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What is asked for: ``verb`` on ``nodes/<one of subresources>``."""

    verb: str
    subresources: tuple[str, ...]

    @classmethod
    def of(cls, method: str, path: str) -> Attributes:
        first = path.lstrip("/").split("/", 1)[0]
        return cls(_VERBS.get(method, ""), _SUBRESOURCES.get(first, ("proxy",)))


class _Cache(Generic[K, V]):
    """Values for a time; the oldest go first when there are too many."""

    def __init__(self) -> None:
        self._entries: collections.OrderedDict[K, tuple[float, V]] = collections.OrderedDict()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None or entry[0] < time.monotonic():
            return None
        return entry[1]

    def put(self, key: K, value: V, seconds: float) -> None:
        self._entries.pop(key, None)
        self._entries[key] = (time.monotonic() + seconds, value)
        while len(self._entries) > MAX_CACHE:
            self._entries.popitem(last=False)


def from_certificate(certificate: Any) -> User | None:
    """The user of a verified certificate in the form of ``ssl.SSLSocket.getpeercert()``; None without one."""
    names: list[str] = []
    groups: list[str] = []
    for relative_name in (certificate or {}).get("subject", ()):
        for key, value in relative_name:
            if key == "commonName":
                names.append(value)
            elif key == "organizationName":
                groups.append(value)
    if not names or not names[0]:
        return None
    return User(names[0], groups=(*groups, "system:authenticated"))


class Auth:
    """Authentication and authorization for the kubelet of node ``node_name``."""

    def __init__(self, client: kube_client.Client, node_name: str) -> None:
        self._client = client
        self._node_name = node_name
        self._tokens: _Cache[bytes, User | str] = _Cache()  # by digest; a string: refused
        self._answers: _Cache[tuple[User, str, str], bool] = _Cache()

    async def authenticate(self, certificate: Any, authorization: str) -> User | None:
        """Return the user, None when nothing proves one. Raises APIError when the API server cannot be asked."""
        user = from_certificate(certificate)  # first, as upstream
        scheme, _, token = authorization.partition(" ")
        if user is None and scheme.lower() == "bearer" and token.strip():
            return await self._review(token.strip())
        return user

    async def _review(self, token: str) -> User | None:
        if len(token) > MAX_TOKEN:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        known = self._tokens.get(digest)
        if known is not None:
            return known if isinstance(known, User) else None
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        review = await self._client.create("/apis/authentication.k8s.io/v1/tokenreviews", body)
        status = review.get("status") or {}
        found = status.get("user") or {}
        if not status.get("authenticated") or not found.get("username"):
            self._tokens.put(digest, "refused", REFUSED_TOKEN_SECONDS)
            return None
        extra = json.dumps(found.get("extra") or {}, sort_keys=True)
        user = User(found["username"], found.get("uid", ""), tuple(found.get("groups") or ()), extra)
        self._tokens.put(digest, user, TOKEN_SECONDS)
        return user

    async def allows(self, user: User, attributes: Attributes) -> bool:
        """Tell whether one of the subresources is allowed. Raises APIError when the API server cannot be asked."""
        for subresource in attributes.subresources:
            key = (user, attributes.verb, subresource)
            allowed = self._answers.get(key)
            if allowed is None:
                allowed = await self._ask(user, attributes.verb, subresource)
                self._answers.put(key, allowed, ALLOWED_SECONDS if allowed else DENIED_SECONDS)
            if allowed:
                return True
        return False

    async def _ask(self, user: User, verb: str, subresource: str) -> bool:
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "uid": user.uid,
                "groups": list(user.groups),
                "extra": json.loads(user.extra),
                "resourceAttributes": {
                    "verb": verb,
                    "version": "v1",
                    "resource": "nodes",
                    "subresource": subresource,
                    "name": self._node_name,
                },
            },
        }
        review = await self._client.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool((review.get("status") or {}).get("allowed"))
