"""Runs the components: each when those it links to are ready, again with back-off when it dies, down in the reverse order."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence

import aiohttp

from hpk import errors, procs, tasks
from hpk.bootstrap import component, logfiles

log = logging.getLogger(__name__)

#: Restart delays double from the first to the last, in seconds; after STEADY_SECONDS of good work they start anew. What had come up
#: before it died waits no longer than READY_BACKOFF: without it the cluster stands still.
FIRST_BACKOFF = 0.5
READY_BACKOFF = 3.0
LAST_BACKOFF = 30.0
STEADY_SECONDS = 10.0
#: A component that ends this often before it was ever ready will not get better by itself.
START_ATTEMPTS = 3
#: Pace of the readiness requests, in seconds.
PROBE_SECONDS = 0.1
ROTATE_SECONDS = 30.0


@dataclasses.dataclass
class State:
    """What is known of a component now; shown by ``hpk status``."""

    phase: str = "waiting"
    """waiting (for its links), starting, ready, failed (will be started again), stopped"""
    pid: int = 0
    restarts: int = 0
    ready_at: float = 0.0
    """Seconds since the epoch."""
    last_exit: str = ""


class _Kept:
    """One component with its process and events."""

    def __init__(self, spec: component.Component) -> None:
        self.spec = spec
        self.state = State()
        self.process: procs.Child | None = None
        self.ready = asyncio.Event()
        self.stopped = asyncio.Event()
        self.was_ready = False


class Runner:
    """Keeps ``components`` running. ``environment`` is what each gets beside its own, ``folder`` where each is started,
    ``log_path`` names a component's log file, ``changed`` is called after each change of state."""

    def __init__(
        self,
        components: Sequence[component.Component],
        *,
        environment: Mapping[str, str],
        folder: str,
        log_path: Callable[[str], str],
        changed: Callable[[], None],
    ) -> None:
        self._kept = {spec.name: _Kept(spec) for spec in component.start_order(components)}
        self._environment = environment
        self._folder = folder
        self._log_path = log_path
        self._changed = changed
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._stopping = False

    @property
    def states(self) -> Mapping[str, State]:
        return {name: kept.state for name, kept in self._kept.items()}

    def _pids(self) -> list[int]:
        running = [kept.process for kept in self._kept.values() if kept.process is not None and kept.process.returncode is None]
        return [process.pid for process in running]

    def start(self) -> None:
        """Begin; returns at once."""
        procs.adopt_orphans()
        for kept in self._kept.values():
            logfiles.rotate(self._log_path(kept.spec.name))
            task = tasks.guarded(self._keep(kept), f"keep {kept.spec.name}")
            task.add_done_callback(self._crashed)
            self._tasks.append(task)
        self._tasks.append(tasks.guarded(self._rotate(), "rotate logs"))

    def _crashed(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for ever for a component that is no longer looked after."""
        if not task.cancelled() and (defect := task.exception()) and not self._failure.done():
            self._failure.set_exception(defect)

    async def wait_ready(self, name: str) -> None:
        """Wait until the component is ready. Raises StateError when it (or one that it waits for) does not come up at all."""
        ready: asyncio.Future[bool] = asyncio.ensure_future(self._kept[name].ready.wait())
        try:
            both: list[asyncio.Future[bool]] = [ready, self._failure]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
        finally:
            ready.cancel()

    async def stop(self) -> None:
        """End every component after those that link to it: SIGTERM, then SIGKILL after its stop_timeout."""
        self._stopping = True
        await tasks.stop(self._tasks)
        await asyncio.gather(*(self._stop(kept) for kept in self._kept.values()))
        procs.end_orphans(self._pids())

    async def restart(self, leaves: Sequence[str]) -> None:
        """Restart, one after the other, the components that use one of these certificates."""
        for kept in self._kept.values():
            if kept.process is not None and set(kept.spec.certificates) & set(leaves):
                log.info("%s: restarting with its new certificate", kept.spec.name)
                kept.ready.clear()
                kept.process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(kept.ready.wait(), kept.spec.ready_timeout + kept.spec.stop_timeout + LAST_BACKOFF)

    def _set(self, kept: _Kept, **changes: object) -> None:
        for name, value in changes.items():
            setattr(kept.state, name, value)
        self._changed()

    async def _keep(self, kept: _Kept) -> None:
        for link in kept.spec.links:
            await self._kept[link].ready.wait()
        backoff, failures = FIRST_BACKOFF, 0
        while True:
            started = time.monotonic()
            why = await self._run_once(kept)
            if kept.ready.is_set():
                backoff = min(backoff, READY_BACKOFF)
            kept.ready.clear()
            procs.end_orphans(self._pids())
            self._set(kept, phase="failed", pid=0, last_exit=why)
            if self._stopping:
                await asyncio.Event().wait()  # a signal to the whole job reached it before our own; stop() cancels us
            failures += 1
            last_words = logfiles.last_words(self._log_path(kept.spec.name))
            log.warning("%s %s%s", kept.spec.name, why, f": {last_words}" if last_words else "")
            if not kept.was_ready and failures >= START_ATTEMPTS:
                if not self._failure.done():
                    self._failure.set_exception(
                        errors.StateError(
                            f"{kept.spec.summary} {why}" + (f": {last_words}" if last_words else ""),
                            hint=f"its log: {self._log_path(kept.spec.name)}",
                        )
                    )
                await asyncio.Event().wait()
            if time.monotonic() - started > STEADY_SECONDS:
                backoff = FIRST_BACKOFF
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)
            kept.state.restarts += 1

    async def _run_once(self, kept: _Kept) -> str:
        """Start the component and return how it ended."""
        spec = kept.spec
        try:
            env = {**self._environment, **spec.env}
            kept.process = await procs.spawn(
                spec.argv, output=self._log_path(spec.name), env=env, cwd=self._folder, orphan_signal=spec.orphan_signal
            )
        except errors.MissingTool as exc:
            return f"cannot be started: {exc.message}"
        self._set(kept, phase="starting", pid=kept.process.pid)
        ended = asyncio.ensure_future(kept.process.wait())
        probing = asyncio.ensure_future(self._probe(spec, time.time()))
        try:
            await asyncio.wait([ended, probing], timeout=spec.ready_timeout, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                if not probing.done():
                    await self._end(kept)
                    return f"was not ready after {spec.ready_timeout:.0f} s"
                probing.result()
                kept.was_ready = True
                self._set(kept, phase="ready", ready_at=time.time())
                kept.ready.set()
            return _exit_text(await ended)
        finally:
            probing.cancel()
            ended.cancel()

    async def _probe(self, spec: component.Component, started: float) -> None:
        """Return when the component, started at that time, is ready."""
        if spec.ready is None:
            return
        context = _tls(spec.ready)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                try:
                    async with session.get(spec.ready.url, ssl=context) as answer:
                        if answer.status == 200 and (spec.ready.accept is None or spec.ready.accept(await answer.json(), started)):
                            return
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as exc:
                    log.debug("%s: not ready: %s", spec.name, exc)
                await asyncio.sleep(PROBE_SECONDS)

    async def _stop(self, kept: _Kept) -> None:
        for other in self._kept.values():
            if kept.spec.name in other.spec.links:
                await other.stopped.wait()
        await self._end(kept)
        self._set(kept, phase="stopped", pid=0)
        kept.stopped.set()

    async def _end(self, kept: _Kept) -> None:
        if kept.process is None or kept.process.returncode is not None:
            return
        kept.process.send_signal(signal.SIGTERM)
        pids = self._pids()
        alone = any((process := self._kept[link].process) is None or process.pid not in pids for link in kept.spec.links)
        try:  # scancel's SIGTERM goes to all processes at once: without etcd the API server would not come to an end
            await asyncio.wait_for(kept.process.wait(), min(kept.spec.stop_timeout, 3.0) if alone else kept.spec.stop_timeout)
        except asyncio.TimeoutError:
            log.warning("%s does not end on SIGTERM, killing it", kept.spec.name)
            kept.process.send_signal(signal.SIGKILL)
            await kept.process.wait()

    async def _rotate(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_SECONDS)
            for name in self._kept:
                logfiles.rotate_running(self._log_path(name))


def _tls(check: component.Check) -> ssl.SSLContext | bool:
    if not check.ca:
        return True
    context = ssl.create_default_context(cafile=check.ca)
    if check.cert:
        context.load_cert_chain(check.cert, check.key)
    return context


def _exit_text(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"
