"""Facts of the node: address, ports, name servers."""

from __future__ import annotations

import pathlib
import socket

import pytest

from hpk import errors
from hpk.bootstrap import node


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to; all of 127.0.0.0/8 and 10.0.0.1 are this node's."""
    table: dict[str, list[str]] = {}
    monkeypatch.setattr(node, "_resolve", lambda name: table.get(name, []))
    monkeypatch.setattr(node, "_own", lambda address: address.startswith("127.") or address == "10.0.0.1")
    monkeypatch.setattr(node, "_route_source", lambda: None)
    monkeypatch.setattr(socket, "gethostname", lambda: "c1")
    return table


def test_host_name_s_address(names: dict[str, list[str]]) -> None:
    names["c1"] = ["127.0.1.1", "10.0.0.1"]
    assert node.address() == "10.0.0.1"


def test_default_route_where_the_host_name_says_nothing_useful(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    names["c1"] = ["127.0.1.1"]
    monkeypatch.setattr(node, "_route_source", lambda: "10.0.0.7")
    assert node.address() == "10.0.0.7"


def test_loopback_at_last(names: dict[str, list[str]]) -> None:
    assert node.address() == "127.0.0.1"


def test_configured_name_and_address(names: dict[str, list[str]]) -> None:
    names["c1-ib"] = ["10.0.0.1"]
    assert node.address("c1-ib") == "10.0.0.1"
    assert node.address("10.0.0.1") == "10.0.0.1"
    with pytest.raises(errors.InvalidInput, match=r"controlPlane\.address: '10\.9\.9\.9' is not an address of this node"):
        node.address("10.9.9.9")
    with pytest.raises(errors.InvalidInput, match="does not resolve"):
        node.address("c1-fast")


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_ports_differ_and_are_kept_while_free() -> None:
    wanted = {name: "127.0.0.1" for name in "abcdef"}
    first = node.choose_ports(wanted, {}, {})
    assert len(set(first.values())) == 6
    assert node.choose_ports(wanted, first, {}) == first


def test_taken_port_of_the_last_run_is_replaced() -> None:
    with listener() as taken:
        port = taken.getsockname()[1]
        assert node.choose_ports({"a": "127.0.0.1"}, {"a": port}, {})["a"] != port


def test_taken_configured_port_is_one_clear_line() -> None:
    with listener() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(errors.InvalidInput, match=rf"controlPlane\.port: port {port} of 127\.0\.0\.1 is taken"):
            node.choose_ports({"a": "127.0.0.1"}, {}, {"a": ("controlPlane.port", port)})


@pytest.mark.parametrize("raw", [None, [], {"a": "x"}, {"a": 80}, {"a": 99999}, {"b": 2000}])
def test_damaged_record_of_ports_is_ignored(raw: object) -> None:
    assert node.last_ports(raw, ["a"]) == {}


def test_resolvers(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# site\nsearch site.example\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\nnameserver\noptions ndots:1\n"
    )
    assert node.resolvers(str(file)) == ("10.0.0.2",)
    assert node.resolvers(str(tmp_path / "none")) == ()
