"""Lifecycle handlers: postStart and preStop by exec, httpGet, tcpSocket or sleep (API: LifecycleHandler)."""

from __future__ import annotations

from hpk.pod import checks, execs, loop, runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Seconds that an httpGet hook may take (the kubelet's lifecycle handler has no other limit than the grace period).
HTTP_TIMEOUT = 30.0


class Hooks:
    def __init__(self, looper: loop.Loop, runner: execs.Execs, pod_ip: str) -> None:
        self._loop = looper
        self._execs = runner
        self._pod_ip = pod_ip

    def run(
        self, handler: dict[str, Any], spec: dict[str, Any], instance: runtime.Instance, seconds: float | None, done: Callable[[str], None]
    ) -> None:
        """Run ``handler``; ``done`` is called once with "" or what went wrong. ``seconds``: the most that it may take."""
        if handler.get("exec") is not None:

            def ended(code: int, output: str) -> None:
                if code == execs.TIMED_OUT:
                    done("")  # the kubelet does not count a hook that outlasts the grace period as failed
                else:
                    done("" if code == 0 else f"exit code {code}: {output.strip()[:500]}")

            command = list(handler["exec"].get("command") or [])
            self._execs.run(instance.program, command, instance.environment, spec.get("workingDir") or "/", seconds, ended)
        elif handler.get("sleep") is not None:
            wanted = float(handler["sleep"].get("seconds") or 0)
            self._loop.later(wanted if seconds is None else min(wanted, seconds), lambda: done(""))
        elif handler.get("httpGet") is not None:
            timeout = HTTP_TIMEOUT if seconds is None else min(HTTP_TIMEOUT, seconds)
            checks.http(self._loop, handler["httpGet"], self._pod_ip, timeout, lambda ok, text: done("" if ok else text))
        elif handler.get("tcpSocket") is not None:
            checks.tcp(self._loop, handler["tcpSocket"], self._pod_ip, seconds or HTTP_TIMEOUT, lambda ok, text: done("" if ok else text))
        else:
            done("the handler has no action")
