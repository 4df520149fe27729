"""Where packages of another suite come from is read from the machine's own apt sources."""

from __future__ import annotations

import pytest

from tests.testbed import commands, debs

DEB822 = """\
# made at installation
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture(autouse=True)
def _bookworm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debs, "_codename", lambda: "bookworm")


def test_deb822() -> None:
    source = debs.debian_source([DEB822], "sid")
    assert source == "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian sid main\n"


def test_one_line_with_options_after_other_sources() -> None:
    other = "deb https://example.org/tools stable main\n# deb http://old.example/debian bookworm main\n"
    own = "deb [arch=amd64] http://mirror.example/debian bookworm contrib main\n"
    assert debs.debian_source([other, own], "trixie") == "deb [arch=amd64] http://mirror.example/debian trixie main\n"


def test_only_updates_and_security_is_not_enough() -> None:
    with pytest.raises(commands.TestbedError, match="no source of Debian bookworm main"):
        debs.debian_source(["deb http://mirror.example/debian bookworm-updates main\n"], "sid")
