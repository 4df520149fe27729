"""Service-account tokens of Pods: asked of the API server by TokenRequest, bound to the Pod, renewed in time.

A token is renewed when 80 % of its life is over, or after a day; until then the same one is given again.
Source: pkg/kubelet/token/token_manager.go, KEP-1205.
"""

from __future__ import annotations

import calendar
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from hpk.kube import client as kube_client

_MAX_AGE = 24 * 3600.0
_USED_UP = 0.8


@dataclasses.dataclass(frozen=True)
class _Token:
    text: str = dataclasses.field(repr=False)
    renew_at: float


class TokenManager:
    """Tokens by Pod UID, audience and lifetime."""

    def __init__(self, client: kube_client.Client) -> None:
        self._client = client
        self._tokens: dict[str, dict[tuple[str, int], _Token]] = {}  # by UID: thousands of Pods end at once

    async def get(self, pod: Mapping[str, Any], audience: str, seconds: int) -> str:
        """Return a valid token of the Pod's service account. Raises errors of hpk.kube.errors."""
        metadata = pod["metadata"]
        key = (audience, seconds)
        known = self._tokens.get(metadata["uid"], {}).get(key)
        now = time.time()
        if known is not None and now < known.renew_at:
            return known.text
        account = pod["spec"].get("serviceAccountName") or "default"
        path = kube_client.path("v1", "serviceaccounts", metadata["namespace"], account, "token")
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {"audiences": [audience] if audience else [], "expirationSeconds": seconds, "boundObjectRef": bound}
        answer = await self._client.create(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
        status = answer["status"]
        life = _parse_time(status["expirationTimestamp"]) - now
        self._tokens.setdefault(metadata["uid"], {})[key] = _Token(status["token"], now + min(life * _USED_UP, _MAX_AGE))
        return str(status["token"])

    def forget(self, uid: str) -> None:
        self._tokens.pop(uid, None)


def _parse_time(text: str) -> float:
    return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
