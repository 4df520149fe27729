"""Processes and small files of the test bed. All processes start here, from argv lists."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence


class TestbedError(Exception):
    """The bed cannot do what was asked; the text says why and what to do."""

    __test__ = False  # pytest: not a test case


def say(text: str) -> None:
    """Tell the person at the terminal what is happening."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    stdin: str | None = None,
    timeout: float = 60,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end and return what it printed. At the time limit (seconds) its whole process group is killed.

    Raises TestbedError when it fails and ``check`` is set, or when it takes longer than ``timeout``.
    """
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=env,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise TestbedError(f"no end after {timeout:g} s: {shlex.join(argv)}\n{_tail(out + err)}") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if check and process.returncode != 0:
        raise TestbedError(f"exit code {process.returncode}: {shlex.join(argv)}\n{_tail(out + err)}")
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def _tail(text: str) -> str:
    return text.rstrip()[-2000:]


def wait_until(what: str, check: Callable[[], bool], timeout: float, pause: float = 0.05) -> None:
    """Wait until ``check`` is true. Raises TestbedError that names ``what`` after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not check():
        if time.monotonic() > end:
            raise TestbedError(f"{what}: not after {timeout:g} s")
        time.sleep(pause)


def read(path: str) -> str:
    """Text of a file; empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file and the folders above it, in one step for its readers."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f"{path}.new"
    with open(new, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    os.replace(new, path)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file ``path``; wait for whoever holds it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
