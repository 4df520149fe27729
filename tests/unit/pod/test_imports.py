"""What runs in the job must start fast and stay small: nothing heavy may be imported, and Python 3.9 must do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[3]
HEAVY = {
    "asyncio",
    "dataclasses",
    "typing",
    "argparse",
    "logging",
    "pathlib",
    "ssl",
    "hashlib",
    "secrets",
    "random",
    "subprocess",
    "shutil",
    "tempfile",
}
SOURCES = [
    *sorted((TREE / "hpk" / "pod").glob("*.py")),
    TREE / "hpk" / "sandbox.py",
    TREE / "hpk" / "records.py",
    TREE / "hpk" / "files.py",
]


def test_supervisor_imports_nothing_heavy() -> None:
    code = f"import sys; sys.path.insert(0, {str(TREE)!r}); import hpk.pod.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_python_3_9_can_read_it(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    assert not any(type(node).__name__ == "Match" for node in ast.walk(tree))
    if path.name != "__init__.py" and any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree)):
        assert "from __future__ import annotations" in path.read_text(), "X | Y in annotations needs it on Python 3.9"
