"""The runner with small real programs: order, restarts, giving up, the end. Nothing may be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest

from hpk import errors
from hpk.bootstrap import component, lock, logfiles, runner

SERVE = """
import http.server, sys, time
time.sleep(float(sys.argv[2]))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def shell(name: str, script: str, *links: str, **more: object) -> component.Component:
    return component.Component(name, name.upper(), ("/bin/sh", "-c", script), links, **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(folder: pathlib.Path, *specs: component.Component) -> AsyncIterator[runner.Runner]:
    (folder / "logs").mkdir(exist_ok=True)
    it = runner.Runner(
        specs,
        environment={"PATH": os.environ["PATH"], "FOLDER": str(folder)},
        folder=str(folder),
        log_path=lambda name: str(folder / "logs" / f"{name}.log"),
        changed=lambda: None,
    )
    it.start()
    try:
        yield it
    finally:
        await it.stop()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_waits_for_readiness_of_links(tmp_path: pathlib.Path, unused_tcp_port: int) -> None:
    server = component.Component(
        "server",
        "server",
        (sys.executable, "-I", "-S", "-c", SERVE, str(unused_tcp_port), "0.4"),
        ready=component.Check(f"http://127.0.0.1:{unused_tcp_port}/"),
    )
    async with running(tmp_path, shell("client", "exec sleep 60", "server"), server) as it:
        await until(lambda: it.states["server"].phase == "starting")
        assert it.states["client"].phase == "waiting"
        await it.wait_ready("client")
        assert it.states["server"].phase == "ready"


async def test_dead_component_is_started_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.05)
    async with running(tmp_path, shell("a", "exec sleep 60")) as it:
        await it.wait_ready("a")
        first = it.states["a"].pid
        os.kill(first, 9)
        await until(lambda: it.states["a"].pid not in (0, first))
        assert it.states["a"].restarts == 1
        assert it.states["a"].last_exit == "was killed by SIGKILL"
        await it.wait_ready("a")


async def test_one_that_never_comes_up_is_told_with_its_own_words(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.01)
    bad = shell("bad", "echo 'Error: no such disk' >&2; exit 4", ready=component.Check("http://127.0.0.1:9/"))
    async with running(tmp_path, bad, shell("next", "exec sleep 60", "bad")) as it:
        with pytest.raises(errors.StateError, match="BAD ended with exit code 4: Error: no such disk") as caught:
            await it.wait_ready("next")
        assert "bad.log" in (caught.value.hint or "")
        assert it.states["next"].phase == "waiting"


async def test_missing_program_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.01)
    async with running(tmp_path, component.Component("x", "X", (str(tmp_path / "none"),))) as it:
        with pytest.raises(errors.StateError, match=r"X cannot be started: .*/none not found"):
            await it.wait_ready("x")


async def test_not_ready_in_time_is_a_failure(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.01)
    slow = shell("slow", "exec sleep 60", ready=component.Check("http://127.0.0.1:9/"), ready_timeout=0.2)
    async with running(tmp_path, slow) as it:
        with pytest.raises(errors.StateError, match="was not ready after 0 s"):
            await it.wait_ready("slow")


async def test_ends_in_reverse_order(tmp_path: pathlib.Path) -> None:
    def note(name: str, *links: str) -> component.Component:
        # the sleep in the background lets the shell act on the signal at once
        return shell(name, f"trap 'echo {name} >> $FOLDER/order; kill $!; exit 0' TERM; echo up >> $FOLDER/up; sleep 60 & wait", *links)

    async with running(tmp_path, note("db"), note("api", "db"), note("web", "api")) as it:
        await until(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text().count("up") == 3)
        pids = [state.pid for state in it.states.values()]
    assert (tmp_path / "order").read_text().split() == ["web", "api", "db"]
    assert all(lock.process_start(pid) is None for pid in pids)
    assert {state.phase for state in it.states.values()} == {"stopped"}


async def test_stubborn_component_is_killed(tmp_path: pathlib.Path) -> None:
    stubborn = shell("s", "trap '' TERM; echo up > $FOLDER/up; while :; do sleep 0.1; done", stop_timeout=0.3)
    async with running(tmp_path, stubborn) as it:
        await until(lambda: (tmp_path / "up").exists())
        pid = it.states["s"].pid
    assert lock.process_start(pid) is None


async def test_restart_for_a_new_certificate(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.05)
    async with running(
        tmp_path, shell("a", "exec sleep 60", certificates=("one",)), shell("b", "exec sleep 60", certificates=("two",))
    ) as it:
        await it.wait_ready("a")
        await it.wait_ready("b")
        before = {name: state.pid for name, state in it.states.items()}
        await it.restart(["one"])
        assert it.states["a"].pid not in (0, before["a"])
        assert it.states["b"].pid == before["b"]


def test_components_end_with_the_runner(tmp_path: pathlib.Path) -> None:
    """Killed outright, the runner leaves nothing behind, also where Slurm does not clean up, also programs in a user namespace."""
    script = f"""
import asyncio, os, signal
from hpk import procs
async def main():
    shell = "trap 'echo asked to end; exit' TERM; trap '' IO; while :; do sleep 0.05; done"
    plain = await procs.spawn(["/bin/sh", "-c", shell], output={str(tmp_path / "log")!r})
    apart = await procs.spawn(["unshare", "--user", "--map-current-user", "/bin/sleep", "60"], output={str(tmp_path / "log")!r})
    await asyncio.sleep(0.3)
    print(plain.pid, apart.pid, os.readlink(f"/proc/{{apart.pid}}/ns/user") != os.readlink("/proc/self/ns/user"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    plain, apart, entered = done.stdout.split()
    assert entered == "True", (tmp_path / "log").read_text()
    deadline = time.monotonic() + 5
    while any(lock.process_start(int(pid)) is not None for pid in (plain, apart)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (tmp_path / "log").read_text() == "asked to end\n"


async def test_what_a_killed_component_leaves_is_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.05)
    helper = shell("a", "sleep 60 & echo $! >> $FOLDER/helpers; wait")
    async with running(tmp_path, helper, shell("b", "exec sleep 60")) as it:
        await until(lambda: (tmp_path / "helpers").exists())
        os.kill(it.states["a"].pid, 9)
        await until(lambda: len((tmp_path / "helpers").read_text().split()) == 2)
        first, second = map(int, (tmp_path / "helpers").read_text().split())
        assert lock.process_start(first) is None
        assert lock.process_start(second) is not None
        assert it.states["b"].restarts == 0
    assert lock.process_start(second) is None


def test_logs_are_moved_aside_and_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "a.log"
    for number in range(5):
        log.write_text(f"run {number}\n")
        logfiles.rotate(str(log))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log.1", "a.log.2", "a.log.3"]
    assert (tmp_path / "a.log.1").read_text() == "run 4\n"
    monkeypatch.setattr(logfiles, "MAX_BYTES", 10)
    with log.open("a") as writer:
        writer.write("x" * 20)
        writer.flush()
        logfiles.rotate_running(str(log))
        writer.write("y")
    assert log.read_text() == "y"
    assert (tmp_path / "a.log.1").read_text() == "x" * 20


def test_outputs_of_former_jobs_do_not_pile_up(tmp_path: pathlib.Path) -> None:
    for number in range(6):
        (tmp_path / f"hpk-{number}.out").touch()
        os.utime(tmp_path / f"hpk-{number}.out", (number, number))
    (tmp_path / "etcd.log").touch()
    logfiles.prune(str(tmp_path), "hpk-*.out", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etcd.log", "hpk-4.out", "hpk-5.out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("one\n\ntwo\n", "two"),
        (
            'E1124 09:00:00 1 run.go:72] "command failed" err="bad"\nI1124 09:00:00 1 x.go:1] bye\n',
            'E1124 09:00:00 1 run.go:72] "command failed" err="bad"',
        ),
        ("Error: unknown flag: --x\nUsage:\n  kube-apiserver\n", "Error: unknown flag: --x"),
    ],
)
def test_last_words(tmp_path: pathlib.Path, text: str, words: str) -> None:
    (tmp_path / "log").write_text(text)
    assert logfiles.last_words(str(tmp_path / "log")) == words


async def test_one_that_had_come_up_is_never_missed_for_long(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_BACKOFF", 0.05)
    monkeypatch.setattr(runner, "READY_BACKOFF", 0.1)
    async with running(tmp_path, shell("a", "exec sleep 60")) as it:
        began = time.monotonic()
        for number in range(8):
            await until(lambda number=number: it.states["a"].restarts == number and it.states["a"].phase == "ready")
            os.kill(it.states["a"].pid, 9)
        await until(lambda: it.states["a"].restarts == 8)
        assert time.monotonic() - began < 6.0  # the delays doubled would be 12 s
