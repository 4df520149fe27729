"""Exceptions that HPK raises on purpose.

    HPKError
    ├── InvalidInput          what the user wrote cannot be used: names the field or flag, says what to do
    │   └── Rejected          a Pod that can never run here: becomes phase Failed with this reason
    ├── NotReady              not now, perhaps later: the Pod stays Pending with this reason and is tried again
    ├── MissingTool           a program that we need is not on PATH
    ├── ProcessError          a program that we started failed (hpk/procs.py)
    ├── SlurmError            Slurm answered "no" (hpk/slurm/)
    │   └── SlurmUnknown      Slurm did not answer: nothing may be concluded from it
    ├── APIError              the API server answered with an error Status (hpk/kube/errors.py has the children)
    └── StateError            the state directory is locked, of another version, or not writable

A command of ``hpk`` that ends with an HPKError prints ``hpk: error: <message>`` on one line, then ``hint`` on a second one if
there is a hint, and exits with 1. Anything else is a defect of ours and shows its traceback.
"""

from __future__ import annotations


class HPKError(Exception):
    """Base of all expected errors. ``hint`` is one line that says what the user can do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInput(HPKError):
    """The user's input (flag, YAML field, annotation, file) cannot be used. The message names it."""


class Rejected(InvalidInput):
    """A Pod that cannot run here, now or later: the kubelet sets phase Failed with ``reason`` (CamelCase) and the message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotReady(HPKError):
    """Something that the Pod needs is not there yet. ``reason`` is upstream's waiting reason or Event reason.

    ``container`` is the name of the container whose ``state.waiting`` shows the reason; None when it concerns the whole Pod
    (its containers then wait as ContainerCreating and the Event alone tells why). ``event`` is the reason of the Warning Event to
    record with the message; None: the same as ``reason``; empty: none, it was recorded already.
    """

    def __init__(self, reason: str, message: str, *, container: str | None = None, event: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.container = container
        self.event = reason if event is None else event


class MissingTool(HPKError):
    """A program is not on PATH."""


class ProcessError(HPKError):
    """A program failed. ``returncode`` is negative for a signal, as in subprocess; None when it did not start or timed out."""

    def __init__(
        self, message: str, *, argv: list[str], returncode: int | None, stdout: str = "", stderr: str = "", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = argv
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class SlurmError(HPKError):
    """Slurm refused a request; the message is Slurm's own."""


class SlurmUnknown(SlurmError):
    """Slurm did not answer (controller away, time-out, unreadable output). Unknown is never "gone"."""


class APIError(HPKError):
    """The API server refused a request. ``code`` is the HTTP status, ``reason`` the Status reason (NotFound, Conflict, ...)."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class StateError(HPKError):
    """The state directory cannot be used now."""
