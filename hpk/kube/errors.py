"""What the API server says no with, as exceptions.

    errors.APIError
    ├── BadRequest 400, Unauthorized 401, Forbidden 403, NotFound 404, MethodNotAllowed 405
    ├── Conflict 409          the object changed meanwhile (reason Conflict), read it again
    ├── AlreadyExists 409     reason AlreadyExists
    ├── Gone 410              a resourceVersion or a continue token is too old: list again
    ├── Invalid 422           validation failed
    ├── TooManyRequests 429   also an eviction refused by a PodDisruptionBudget
    ├── ServerError 5xx
    └── Unreachable           no answer: nothing may be concluded, the request may have been done

Only the ``message`` of a ``kind: Status`` body is kept, and cut: whatever else an answer holds (Secrets, HTML of a proxy) must
not reach a log.
"""

from __future__ import annotations

import json
from typing import Any

from hpk import errors

#: Longest message of the server that we repeat, in characters.
MAX_MESSAGE = 2048


class APIStatus(errors.APIError):
    """An error Status of the API server. ``details`` is its field of that name, ``retry_after`` in seconds or None."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: dict[str, Any] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(code, reason, message)
        self.details = details or {}
        self.retry_after = retry_after


class BadRequest(APIStatus):
    """400: the request itself is wrong."""


class Unauthorized(APIStatus):
    """401: the certificate or token is not accepted."""


class Forbidden(APIStatus):
    """403: not allowed, or refused by admission."""


class NotFound(APIStatus):
    """404: no such object or resource."""


class MethodNotAllowed(APIStatus):
    """405: the resource knows no such verb."""


class Conflict(APIStatus):
    """409 with reason Conflict: the object changed since it was read, or a precondition does not hold."""


class AlreadyExists(APIStatus):
    """409 with reason AlreadyExists."""


class Gone(APIStatus):
    """410: the resourceVersion or continue token is no longer there (reasons Expired and Gone)."""


class Invalid(APIStatus):
    """422: the object fails validation."""


class TooManyRequests(APIStatus):
    """429: come back later."""


class ServerError(APIStatus):
    """5xx."""


class Unreachable(errors.APIError):
    """The API server did not answer. ``sent`` is False when it surely has not seen the request."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(0, "Unreachable", message)
        self.sent = sent


_CLASSES: dict[int, type[APIStatus]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def from_status(status: dict[str, Any], *, retry_after: float | None = None) -> APIStatus:
    """Return the exception for a ``kind: Status`` object."""
    code = int(status.get("code") or 500)
    reason = str(status.get("reason") or "Unknown")
    message = str(status.get("message") or f"the API server answered {code} {reason}")
    cls = _CLASSES.get(code, ServerError if code >= 500 else APIStatus)
    if reason == "AlreadyExists":
        cls = AlreadyExists
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "..."
    return cls(code, reason, message, details=status.get("details"), retry_after=retry_after)


def from_response(code: int, body: bytes, *, retry_after: float | None = None) -> APIStatus:
    """Return the exception for an HTTP answer with an error code. A body that is no Status is dropped."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": f"the API server answered HTTP {code} without a Status"}
    return from_status({**status, "code": status.get("code") or code}, retry_after=retry_after)
