"""The linters, as tests: `make check` runs these alone. With CI=true a missing linter is a failure."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

TREE = pathlib.Path(__file__).parents[2]
FOLDER = os.path.dirname(sys.executable)


def lint(*argv: str) -> None:
    """Run a linter of this environment or of PATH on the tree; its complaints are the failure's text."""
    program = shutil.which(argv[0], path=f"{FOLDER}:{os.environ.get('PATH', '')}")
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{argv[0]} is not installed (make venv)")
    env = {**os.environ, "PYTHONPATH": str(TREE)}
    done = subprocess.run([program, *argv[1:]], cwd=TREE, env=env, capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(argv[:3])}:\n{done.stdout}{done.stderr}", pytrace=False)


def scripts() -> list[str]:
    """All shell scripts of the tree, the generated ones of the golden files too."""
    found = []
    for path in sorted(TREE.rglob("*")):
        parts = path.relative_to(TREE).parts
        if any(part in (".venv", "build", "dist", "node_modules") or part.endswith(".egg-info") for part in parts) or ".git" in parts:
            continue
        if path.is_file() and not path.is_symlink() and path.suffix != ".j2":
            with open(path, "rb") as file:
                first = file.readline()
            if path.suffix in (".sh", ".sbatch") or (first.startswith(b"#!") and first.split(b"/")[-1].split()[0] in (b"sh", b"bash")):
                found.append(str(path.relative_to(TREE)))
    return found


def test_ruff_format() -> None:
    lint("ruff", "format", "--check", "--diff", "--no-cache")


def test_ruff_check() -> None:
    lint("ruff", "check", "--no-cache", "--output-format=concise")


def test_mypy(tmp_path: pathlib.Path) -> None:
    lint("mypy", f"--cache-dir={tmp_path if os.environ.get('CI') == 'true' else TREE / '.mypy_cache'}")


def test_layers() -> None:
    lint("lint-imports", "--no-cache")


def test_there_are_scripts_to_check() -> None:
    assert {"slurm/hpk.sbatch", ".ci/run", "scripts/test.sh"} <= set(scripts())


@pytest.mark.parametrize("script", scripts())
def test_shellcheck(script: str) -> None:
    # what users wrote must reach the container as it is: that it does not expand is the very point of generated quotes
    lint("shellcheck", *(["--exclude=SC2016"] if script.startswith("tests/golden/") else []), script)
