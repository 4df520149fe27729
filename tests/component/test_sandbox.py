"""Namespaces made by hpk/sandbox.py as an ordinary user, without any runtime. Skipped with the kernel's own reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpk import sandbox
from tests.component import podjob

pytestmark = pytest.mark.component

TREE = Path(sandbox.__file__).parents[1]


def run(code: str, *, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as an ordinary user, with sandbox imported as S."""
    user: dict[str, Any] = {"user": podjob.NOBODY, "group": podjob.NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    text = f"import os, sys; sys.path.insert(0, {str(TREE)!r}); from hpk import sandbox as S\n{code}"
    argv = [*(prefix or []), podjob.PYTHON, "-I", "-S", "-c", text]
    return subprocess.run(argv, capture_output=True, text=True, cwd="/", env={"PATH": "/usr/bin:/bin"}, **user)


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    done = run("S.create(['user'])")
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])


def test_root_inside_with_a_host_name_of_its_own() -> None:
    done = run("s = S.create(['user', 'ipc', 'uts', 'mnt'], 'web-0'); S.enter(s); print(os.getuid(), os.getgid(), os.uname().nodename)")
    assert (done.stdout, done.stderr) == ("0 0 web-0\n", "")


def test_outside_nothing_changes() -> None:
    done = run(
        "before = os.uname().nodename, os.getuid(); S.create(['user', 'uts'], 'x'); print((os.uname().nodename, os.getuid()) == before)"
    )
    assert done.stdout == "True\n"


def test_any_other_id() -> None:
    code = """
s = S.create(['user', 'mnt']); S.enter(s); S.enter_user(4711, 815)
print(os.getuid(), os.getgid())
open('/proc/self/uid_map').read().split()[0] == '4711' and print('mapped')
"""
    assert run(code).stdout == "4711 815\nmapped\n"


def test_namespaces_are_shared_by_all_who_enter() -> None:
    code = """
s = S.create(['user', 'ipc', 'uts', 'mnt'])
def ids():
    read, write = os.pipe()
    if os.fork() == 0:
        S.enter(s)
        os.write(write, ' '.join(os.readlink('/proc/self/ns/' + k) for k in ('user', 'ipc', 'uts', 'mnt')).encode())
        os._exit(0)
    os.wait()
    return os.read(read, 1000)
print(ids() == ids(), os.readlink('/proc/self/ns/user').encode() in ids())
"""
    assert run(code).stdout == "True False\n"


def test_mounts_stay_inside(tmp_path: Path) -> None:
    code = """
s = S.create(['user', 'mnt'])
if os.fork() == 0:
    S.enter(s)
    S.mount('tmpfs', '/mnt', 'tmpfs', 0)
    open('/mnt/x', 'w').close()
    os._exit(0)
print(os.wait()[1], os.path.exists('/mnt/x'))
"""
    assert run(code).stdout == "0 False\n"


def test_join_enters_a_process_with_other_root_and_pids() -> None:
    code = """
import time
s = S.create(['user', 'uts', 'mnt'], 'joined')
read, write = os.pipe()
keeper = os.fork()
if keeper == 0:
    S.enter(s)
    S.unshare(S.CLONE_NEWNS | S.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        S.mount('tmpfs', '/mnt', 'tmpfs', 0)
        os.mkdir('/mnt/inside')
        os.chroot('/mnt')
        os.chdir('/')
        os.write(write, b'x')
        time.sleep(30)
        os._exit(0)
    os.waitpid(child, 0)
    os._exit(0)
os.read(read, 1)
inner = int(open(f'/proc/{keeper}/task/{keeper}/children').read())
if os.fork() == 0:
    S.enter(s)
    S.join(inner, '/inside')
    if os.fork() == 0:
        print(os.getpid() < 10, os.uname().nodename, os.getcwd(), os.listdir('/'), flush=True)
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
os.kill(inner, 9)
"""
    assert run(code).stdout == "True joined /inside ['inside']\n"


def test_refusal_is_one_clear_line() -> None:
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = run("S.create(['user'])", prefix=["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"])
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot make the Pod's namespaces on this node: unshare: No space left on device" in last
    assert "user.max_user_namespaces" in last


def test_command_line() -> None:
    user: dict[str, Any] = {"user": podjob.NOBODY, "group": podjob.NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    argv = [podjob.PYTHON, "-I", "-S", str(TREE / "hpk" / "sandbox.py"), "--hostname", "h", "--user", "7", "--", "id", "-u"]
    assert subprocess.run(argv, capture_output=True, text=True, cwd="/", **user).stdout == "7\n"
    argv[4:] = ["--user", "x"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", **user)
    assert (done.returncode, done.stderr) == (2, "sandbox.py: --user x: expected a number\n")
    assert sys.version_info >= (3, 9)
