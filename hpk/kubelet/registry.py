"""What a registry says of an image: digest, manifest for this architecture, OCI config. The layers are fetched by the runtime.

Source: OCI distribution specification 1.1, Docker's token authentication. Everything that a registry sends is checked against its
digest, so that the image's name, its configuration and the layers pulled later belong together.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from hpk import config as configuration
from hpk import errors
from hpk.kubelet import credentials, imageref

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
#: Larger answers are no manifest (the registry's own limit is 4 MiB).
_MAX_BODY = 4 * 1024 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=10)
_ARCHITECTURES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", ""), "armv7l": ("arm", "v7"), "i686": ("386", "")}


class RegistryError(errors.HPKError):
    """The image cannot be had from its registry now; the message is the one for ErrImagePull."""


class _Denied(RegistryError):
    """The registry wants other credentials."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where an image is fetched from."""

    host: str
    repository: str
    insecure: bool
    """Plain HTTP."""

    @property
    def url(self) -> str:
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{'http' if self.insecure else 'https'}://{host}/v2/{self.repository}"


@dataclasses.dataclass(frozen=True)
class Image:
    """A resolved image."""

    digest: str
    """What the reference names: digest of the index, or of the manifest where there is no index."""
    manifest: str
    """Digest of the manifest for this architecture."""
    config: Mapping[str, Any]
    """The OCI image configuration, whole."""
    size: int
    """Bytes of the compressed layers."""
    credential: credentials.Credential | None
    """What the registry accepted; None: it asked for nothing."""


def endpoint(ref: imageref.Reference, config: configuration.ImagesConfig) -> Endpoint:
    """Return where ``ref`` is fetched from, by the configured mirrors."""
    mirror = config.mirrors.get(ref.domain, ref.domain).rstrip("/").split("://", 1)[-1]
    host, _, prefix = mirror.partition("/")
    return Endpoint(host, f"{prefix}/{ref.repository}" if prefix else ref.repository, host in config.insecure)


def architecture() -> tuple[str, str]:
    """Architecture and variant of this machine in the words of the OCI image specification."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, (machine, ""))


async def resolve(
    ref: imageref.Reference, where: Endpoint, keyrings: Iterable[Mapping[str, credentials.Credential]], *, known: str = ""
) -> Image | None:
    """Ask the registry for ``ref``. Tries all fitting credentials, then none. Raises RegistryError.

    With ``known``, a digest, the answer is None when ``ref`` still names that: one small request, which does not count against
    the limits that public registries put on pulls.
    """
    tries: list[credentials.Credential | None] = [*credentials.matching(where.host, where.repository, keyrings), None]
    try:
        for credential in tries:
            async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=True) as session:
                try:
                    talk = _Conversation(session, ref, where, credential)
                    if known and await talk.names(known):
                        return None
                    return await talk.resolve()
                except _Denied:
                    if credential is None:
                        raise
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as exc:
        words = "it did not answer in time" if isinstance(exc, (asyncio.TimeoutError, TimeoutError)) else " ".join(str(exc).split())
        raise RegistryError(f'failed to resolve reference "{ref}": registry {where.host}: {words or type(exc).__name__}') from exc
    raise AssertionError("the last try returns or raises")


class _Conversation:
    """Requests for one repository with one credential."""

    def __init__(
        self, session: aiohttp.ClientSession, ref: imageref.Reference, where: Endpoint, credential: credentials.Credential | None
    ) -> None:
        self.session = session
        self.ref = ref
        self.where = where
        self.credential = credential
        self.authorization = ""

    async def resolve(self) -> Image:
        body, digest, kind = await self._manifest(self.ref.digest or self.ref.tag)
        top = digest
        if kind in _INDEXES or "manifests" in body:
            digest = self._choose(body)
            body, digest, kind = await self._manifest(digest)
        if body.get("schemaVersion") != 2 or not isinstance(body.get("config"), dict) or not isinstance(body.get("layers"), list):
            raise self._error(f"manifest {digest} is of an unsupported kind ({kind})")
        _, raw = await self._request("GET", f"blobs/{body['config'].get('digest', '')}", "*/*")
        self._verify(raw, str(body["config"].get("digest")))
        config = self._json(raw)
        wanted = architecture()[0]
        if config.get("architecture", wanted) != wanted or config.get("os", "linux") != "linux":
            found = f"{config.get('os')}/{config.get('architecture')}"
            raise self._error(f"no match for platform linux/{wanted} in manifest: the image is {found}")
        size = sum(int(layer.get("size", 0)) for layer in body["layers"] if isinstance(layer, dict))
        return Image(top, digest, config, size, self.credential if self.authorization else None)

    async def names(self, digest: str) -> bool:
        """Whether the reference names ``digest`` at present; False also where the registry does not say."""
        accept = ", ".join(_INDEXES + _MANIFESTS)
        headers, _ = await self._request("HEAD", f"manifests/{self.ref.digest or self.ref.tag}", accept)
        return headers.get("Docker-Content-Digest") == digest

    async def _manifest(self, name: str) -> tuple[dict[str, Any], str, str]:
        _, raw = await self._request("GET", f"manifests/{name}", ", ".join(_INDEXES + _MANIFESTS))
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if ":" in name:
            self._verify(raw, name)
            digest = name
        body = self._json(raw)
        return body, digest, str(body.get("mediaType", ""))

    def _choose(self, index: Mapping[str, Any]) -> str:
        wanted, variant = architecture()
        fitting = []
        for entry in index.get("manifests") or []:
            at = entry.get("platform") or {}
            if at.get("os", "linux") == "linux" and at.get("architecture", wanted) == wanted:
                fitting.append((at.get("variant", "") != variant, str(entry.get("digest"))))
        if not fitting:
            raise self._error(f"no match for platform linux/{wanted} in manifest")
        return min(fitting, key=lambda item: item[0])[1]

    async def _request(self, method: str, path: str, accept: str) -> tuple[Mapping[str, str], bytes]:
        url = f"{self.where.url}/{path}"
        for attempt in (1, 2):
            headers = {"Accept": accept, **({"Authorization": self.authorization} if self.authorization else {})}
            async with self.session.request(method, url, headers=headers, allow_redirects=True) as response:
                if response.status == 401 and attempt == 1:
                    challenge = response.headers.getall("WWW-Authenticate", [])
                elif response.status in (401, 403):
                    raise self._denied()
                elif response.status == 404:
                    raise self._error("not found")
                elif response.status == 429:
                    raise self._error(f"registry {self.where.host}: too many requests, its rate limit is reached")
                elif response.status != 200:
                    raise self._error(f"registry {self.where.host}: unexpected status {response.status} {response.reason}")
                else:
                    return response.headers, await _read(response, self._error("answer is too large for a manifest"))
            self.authorization = await self._authorize(challenge)
        raise self._denied()

    async def _authorize(self, challenges: Iterable[str]) -> str:
        """Answer a 401: return the Authorization header, by Docker's token protocol or Basic."""
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            fields = dict(re.findall(r'([a-zA-Z_]+)="([^"]*)"', rest))
            if scheme.lower() == "basic" and self.credential is not None:
                return self._basic(self.credential)
            if scheme.lower() == "bearer" and fields.get("realm"):
                return f"Bearer {await self._token(fields)}"
        raise self._denied()

    async def _token(self, fields: Mapping[str, str]) -> str:
        realm = fields["realm"]
        if not realm.startswith("https://") and not self.where.insecure:
            raise self._error(f"registry {self.where.host} wants the password sent unencrypted to {realm}; refused")
        params = {"scope": f"repository:{self.where.repository}:pull"}
        if fields.get("service"):
            params["service"] = fields["service"]
        headers = {"Authorization": self._basic(self.credential)} if self.credential else {}
        async with self.session.get(realm, params=params, headers=headers) as response:
            if response.status in (400, 401, 403):
                raise self._denied()
            if response.status != 200:
                raise self._error(f"token service {realm}: unexpected status {response.status} {response.reason}")
            body = self._json(await _read(response, self._error("answer of the token service is too large")))
        token = body.get("token") or body.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise self._error(f"token service {realm} gave no token")
        return token

    @staticmethod
    def _basic(credential: credentials.Credential) -> str:
        return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()

    def _verify(self, raw: bytes, digest: str) -> None:
        algorithm, _, expected = digest.partition(":")
        if algorithm not in ("sha256", "sha384", "sha512") or hashlib.new(algorithm, raw).hexdigest() != expected:
            raise self._error(f"content does not match its digest {digest}")

    def _json(self, raw: bytes) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except ValueError as exc:
            raise self._error(f"registry {self.where.host}: the answer is not JSON") from exc
        if not isinstance(value, dict):
            raise self._error(f"registry {self.where.host}: the answer is not a JSON object")
        return value

    def _error(self, problem: str) -> RegistryError:
        return RegistryError(f'failed to resolve reference "{self.ref}": {problem}')

    def _denied(self) -> RegistryError:
        return _Denied(
            f'failed to resolve reference "{self.ref}": pull access denied, repository does not exist or may require authorization'
        )


async def _read(response: aiohttp.ClientResponse, too_large: RegistryError) -> bytes:
    chunks = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        chunks += chunk
        if len(chunks) > _MAX_BODY:
            raise too_large
    return bytes(chunks)
