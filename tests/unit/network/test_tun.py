"""What needs no namespace of the Pod's network device; the device itself is tried in tests/component/test_wire.py."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from hpk import sandbox
from hpk.network import tun
from tests.unit.pod.test_imports import HEAVY, TREE


def test_range() -> None:
    assert tun._range("10.200.3.4/16") == ("10.200.3.4", "255.255.0.0")
    assert tun._range("10.200.3.4/32") == ("10.200.3.4", "255.255.255.255")
    assert tun._range("0.0.0.0/0") == ("0.0.0.0", "0.0.0.0")
    for text in ("10.200.3.4", "10.200.3.4/33", "10.200.3.4/-1", "10.200/16", "x/8", "fd00::1/64", ""):
        with pytest.raises(OSError, match="expected an IPv4 address range"):
            tun._range(text)


def test_mtu_is_that_of_the_interface_less_the_overhead() -> None:
    loopback = int(Path("/sys/class/net/lo/mtu").read_text())
    assert tun.mtu("127.0.0.1") == min(loopback - tun.OVERHEAD, tun.MTU_RANGE[1])
    assert tun.mtu("192.0.2.1") == 1420, "an address that is nobody's: what nearly every network carries"


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("/dev/net/none", "No such file or directory: /dev/net/none; the site can load the kernel module tun"),
        ("/dev/null", "Inappropriate ioctl for device"),
    ],
)
def test_no_device(monkeypatch: pytest.MonkeyPatch, device: str, words: str) -> None:
    monkeypatch.setattr(tun, "DEVICE", device)
    with pytest.raises(tun.TunError, match=words):
        tun.make(sandbox.Sandbox(), "ov0", "10.200.0.1/16", 1420)


def test_imports() -> None:
    """It runs in the job: nothing heavy, Python 3.9."""
    path = TREE / "hpk" / "network" / "tun.py"
    ast.parse(path.read_text(), feature_version=(3, 9))
    code = f"import sys; sys.path.insert(0, {str(TREE)!r}); import hpk.network.tun, hpk.pod.wire; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
