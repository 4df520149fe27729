"""Names and addresses of a bed."""

from __future__ import annotations

import pytest

from tests.testbed import commands, layout


def test_addresses() -> None:
    assert [layout.address(name) for name in ("login", "c1", "c100")] == ["10.77.0.1", "10.77.0.11", "10.77.0.110"]


def test_beds_share_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPK_TESTBED", "dev")
    other = layout.Layout.default()
    monkeypatch.delenv("HPK_TESTBED")
    main = layout.Layout.default()
    assert {main.state, main.netns, main.cgroup("c1")}.isdisjoint({other.state, other.netns, other.cgroup("c1")})


@pytest.mark.parametrize("name", ["../x", "A", "a b", "x" * 21])
def test_a_name_that_is_no_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HPK_TESTBED", name)
    with pytest.raises(commands.TestbedError, match="HPK_TESTBED"):
        layout.Layout.default()
