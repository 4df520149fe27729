"""Get one file over HTTP(S), or from a folder, and believe it only by its checksum.

The digest grows while the file streams in. A download that breaks off goes on where it stopped (RFC 9110, Range with If-Range),
some times; what cannot be finished or has the wrong digest leaves no file behind.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from hpk import errors

#: Tries of one file, and the pause before the second one in seconds; it doubles each time.
ATTEMPTS = 5
PAUSE = 1.0
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 60.0
_CHUNK = 1 << 20
#: Answers that may be another a little later (RFC 9110, RFC 6585).
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class _Broken(Exception):
    """This try failed, the next may not. The text says how."""


def check_url(url: str, what: str) -> str:
    """Return ``url`` without a trailing slash; an absolute path becomes a file URL. Raises InvalidInput for other schemes."""
    if url.startswith("/"):
        url = "file://" + urllib.parse.quote(url)
    parsed = urllib.parse.urlsplit(url)
    if parsed.scheme not in ("https", "http", "file") or (parsed.scheme != "file" and not parsed.netloc):
        raise errors.InvalidInput(f"{what}: {url!r} is not an https://, http:// or file:// URL or an absolute path")
    return url.rstrip("/")


def mirrored(url: str, mirror: str) -> str:
    """Return where ``mirror`` has ``url``: below it, by host and path, as ``wget --force-directories`` lays files down."""
    if not mirror:
        return url
    parsed = urllib.parse.urlsplit(url)
    return f"{mirror}/{parsed.netloc}{parsed.path}"


def public(url: str) -> str:
    """``url`` without a password, for messages."""
    parsed = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parsed._replace(netloc=parsed.netloc.rpartition("@")[2]))


def _request(url: str, offset: int, validator: str) -> urllib.request.Request:
    parsed = urllib.parse.urlsplit(url)
    request = urllib.request.Request(public(url), headers={"User-Agent": "hpk", "Accept-Encoding": "identity"})  # noqa: S310 - check_url()
    if "@" in parsed.netloc:
        user = urllib.parse.unquote(parsed.netloc.rpartition("@")[0])
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", validator)
    return request


def _open(url: str, offset: int, validator: str) -> Any:
    opener = urllib.request.build_opener()  # of its own: urlopen() would keep the proxies of its first call
    try:
        return opener.open(_request(url, offset, validator), timeout=TIMEOUT)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code in _PASSING or exc.code == 416:
            raise _Broken(f"answer {exc.code} {exc.reason}") from exc
        raise errors.HPKError(
            f"{public(url)}: answer {exc.code} {exc.reason}",
            hint="does the mirror have this version and architecture? `hpk image files` lists all",
        ) from exc
    except urllib.error.URLError as exc:
        if isinstance(exc.reason, ssl.SSLCertVerificationError):
            raise errors.HPKError(f"{public(url)}: certificate not accepted: {exc.reason.verify_message}") from exc
        if isinstance(exc.reason, FileNotFoundError) or url.startswith("file:"):
            raise errors.HPKError(f"{public(url)}: {_reason(exc.reason)}", hint="`hpk image files` lists what a mirror must have") from exc
        raise _Broken(_reason(exc.reason)) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise _Broken(_reason(exc)) from exc


def _reason(exc: object) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__


class _Download:
    """One file under way: what is on disk of it and the digest of that."""

    def __init__(self, url: str, file: Any, algorithm: str, report: Callable[[int, int | None], None]) -> None:
        self.url = url
        self._file = file
        self._algorithm = algorithm
        self._report = report
        self._validator = ""
        self.resumed = False
        self._restart()

    def _restart(self) -> None:
        self.size = 0
        self.digest = hashlib.new(self._algorithm)
        self._file.seek(0)
        self._file.truncate()

    def attempt(self) -> None:
        """Fetch what is missing. Raises _Broken when the end was not reached."""
        if self.size and not self._validator:
            self._restart()  # the server could not tell us that the file is still the same
        try:
            response = _open(self.url, self.size, self._validator)
        except _Broken:
            if self.size:
                self.resumed = True
            raise
        with response:
            if self.size and not self._continues(response):
                self._restart()
            self.resumed = self.resumed or self.size > 0
            length = response.headers.get("Content-Length")
            end = self.size + int(length) if length and length.isdigit() else None
            etag = response.headers.get("ETag") or ""
            self._validator = etag if etag.startswith('"') else response.headers.get("Last-Modified") or ""
            self._copy(response, end)
        if end is not None and self.size != end:
            raise _Broken(f"the connection ended at {self.size} of {end} bytes")

    def _continues(self, response: Any) -> bool:
        """Whether the answer begins where we stopped, and not at the beginning."""
        found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
        return response.status == 206 and found is not None and int(found.group(1)) == self.size

    def _copy(self, response: Any, end: int | None) -> None:
        while True:
            try:
                chunk = response.read1(_CHUNK) if hasattr(response, "read1") else response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as exc:
                raise _Broken(_reason(exc)) from exc
            if not chunk:
                return
            self._file.write(chunk)
            self.digest.update(chunk)
            self.size += len(chunk)
            self._report(self.size, end)


def fetch(url: str, path: str, checksum: str, *, name: str, report: Callable[[int, int | None], None]) -> int:
    """Write ``url`` to the new file ``path`` and return its size in bytes.

    ``checksum`` is ``sha256:HEX`` or ``sha512:HEX``; ``name`` says in messages which file it is; ``report`` is told the bytes so far
    and the whole (None: unknown). Raises HPKError, or OSError when ``path`` cannot be written; it then does not exist.
    """
    algorithm, _, expected = checksum.partition(":")
    try:
        with open(path, "xb") as file:
            download = _Download(url, file, algorithm, report)
            _whole(download, name)
            if download.digest.hexdigest() != expected and download.resumed:
                download._restart()  # the file may have been replaced between two tries
                download.resumed = False
                _whole(download, name)
            got = download.digest.hexdigest()
        if got != expected:
            raise errors.HPKError(
                f"{name}: wrong checksum of {public(url)}: expected {algorithm}:{expected}, got {algorithm}:{got}",
                hint="the file is not the one that was pinned: nothing of it was kept; ask who runs the mirror",
            )
        return download.size
    except BaseException:
        try:
            os.unlink(path)
        except OSError:
            pass  # the first error is the one to tell
        raise


def _whole(download: _Download, name: str) -> None:
    pause = PAUSE
    for left in range(ATTEMPTS - 1, -1, -1):
        try:
            return download.attempt()
        except _Broken as exc:
            if not left:
                raise errors.HPKError(
                    f"{name}: {public(download.url)} could not be fetched in {ATTEMPTS} tries: {exc}",
                    hint="try again later, or name a mirror: --mirror",
                ) from exc
        time.sleep(pause)
        pause *= 2


def fetch_text(url: str, *, name: str, limit: int = 1 << 20) -> str:
    """Return a small text. Raises HPKError."""
    try:
        with _open(url, 0, "") as response:
            return str(response.read(limit).decode("utf-8", "replace"))
    except (_Broken, OSError, http.client.HTTPException) as exc:
        raise errors.HPKError(f"{name}: {public(url)} could not be fetched: {_reason(exc)}") from exc
