"""The supervisor's end of hpk-wire's control socket, with a small program in the place of hpk-wire that speaks as it is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpk.pod import loop, wire

PROGRAM = """#!{python} -S
import json, os, socket, sys, time
os.fstat(int(sys.argv[sys.argv.index("-tun-fd") + 1]))
control = socket.socket(fileno=0)
{body}
"""
READY = 'control.sendall(b\'{"type":"ready","version":1,"publicKey":"k","port":7,"mtu":1420}\\n\')\n'


class End:
    def __init__(self, folder: Path, body: str) -> None:
        self.loop = loop.Loop()
        self.ready: list[dict[str, Any]] = []
        self.ends: list[str] = []
        program = folder / "hpk-wire"
        if body:
            program.write_text(PROGRAM.format(python=sys.executable, body=body))
            program.chmod(0o755)
        self.tun = os.open(os.devnull, os.O_RDWR)
        self.wire = wire.Wire(self.loop, str(program), self.tun, 1420, self.ready.append, self.ends.append, "30000-30100")
        self.wire.start()

    def until(self, condition: Callable[[], object]) -> None:
        """Run until ``condition()``, reaping as the supervisor does."""
        self.turns = 0

        def look() -> None:
            self.turns += 1
            if self.wire.pid:
                pid, status = os.waitpid(self.wire.pid, os.WNOHANG)
                if pid:
                    assert self.wire.exited(pid, status)
            if condition() or self.turns > 500:
                self.loop.stop()
            else:
                self.loop.later(0.01, look)

        self.loop.later(0, look)
        self.loop.run()
        assert condition()


@pytest.fixture
def make(tmp_path: Path):
    made: list[End] = []

    def build(body: str) -> End:
        made.append(End(tmp_path, body))
        return made[-1]

    yield build
    for end in made:
        end.wire.close()
        end.until(lambda end=end: not end.wire.pid)
        os.close(end.tun)


def test_requests_are_answered_one_by_one(make) -> None:
    """Answers that come in pieces; requests of more than a socket's buffer."""
    echo = """
time.sleep(0.2)
for line in control.makefile():
    asked = json.loads(line)
    answer = json.dumps({"type": "done", "id": asked["id"], "added": len(asked["peers"])}).encode() + b"\\n"
    control.sendall(answer[:9]); time.sleep(0.02); control.sendall(answer[9:])
"""
    end = make(READY + echo)
    answers: list[dict[str, Any]] = []
    end.wire.request("setPeers", answers.append, peers=[{"publicKey": "k" * 44}] * 20000)
    end.wire.request("updatePeers", peers=[])
    end.wire.request("updatePeers", answers.append, peers=[{}])
    end.until(lambda: len(answers) == 2)
    assert [answer["added"] for answer in answers] == [20000, 1]
    assert end.ready == [{"publicKey": "k", "port": 7, "mtu": 1420}]
    end.wire.close()
    end.until(lambda: not end.wire.pid)
    assert not end.ends, "it was asked to end"


def test_its_own_end_is_told_and_it_may_start_again(make) -> None:
    end = make(READY + "sys.exit(3)")
    end.until(lambda: end.ends)
    assert end.ends == ["hpk-wire has ended with exit code 3"]
    end.wire.request("listPeers")  # nobody there: no error
    end.wire.start()
    end.until(lambda: len(end.ends) == 2)
    assert len(end.ready) == 2


def test_no_program(make, capfd: pytest.CaptureFixture[str]) -> None:
    end = make("")
    end.until(lambda: end.ends)
    assert end.ends == ["hpk-wire has ended with exit code 127"]
    assert "No such file" in capfd.readouterr().out


def test_another_version_is_not_used(make) -> None:
    end = make(READY.replace(':1,"pub', ':2,"pub') + "control.recv(1)")
    end.until(lambda: not end.wire.pid)
    assert end.ends == ["hpk-wire has another version than HPK"]
    assert not end.ready
