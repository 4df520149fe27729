"""Options and helpers that all tests share."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Callable

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the generated texts into tests/golden instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): ``text`` is what tests/golden/<name> holds; --update-golden writes it there."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"{path} is missing: pytest --update-golden writes it"
        expected = path.read_text()
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(True), text.splitlines(True), str(path), "generated")
            pytest.fail("".join(lines) + "\nif this is meant: pytest --update-golden", pytrace=False)

    return compare
