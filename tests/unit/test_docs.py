"""What the documents say exists exists, and what exists is in the documents."""

from __future__ import annotations

import os
import pathlib
import re

import pytest
import yaml

from hpk import paths

TREE = pathlib.Path(__file__).parents[2]
STATE_DIRECTORY = (TREE / "docs" / "state-directory.md").read_text()


def properties(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if isinstance(value, property)]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (paths.Paths, paths.PodDir, paths.SlurmDir) for name in properties(kind)]
)
def test_state_directory_is_described(kind: type, name: str) -> None:
    path = getattr(kind("/root"), name)
    last = os.path.basename(path)
    assert re.search(rf"[`/]{re.escape(last)}[`/]|{re.escape(last)}[`/ ]", STATE_DIRECTORY), f"docs/state-directory.md does not name {last}"


@pytest.mark.parametrize("document", sorted(path.name for path in TREE.glob("*.md")) + ["docs"])
def test_files_that_documents_name_exist(document: str) -> None:
    texts = (TREE / "docs").glob("*.md") if document == "docs" else [TREE / document]
    named = {
        name
        for text in texts
        for name in re.findall(r"(?<![\w./~-])(?:docs|examples|hpk|slurm|scripts|tests|containers)/[\w/.-]*\w\.\w+", text.read_text())
    }
    missing = [name for name in named if not (TREE / name).exists() and not name.startswith("hpk/hpk")]
    assert not missing


@pytest.mark.parametrize("example", sorted(str(path.relative_to(TREE)) for path in (TREE / "examples").rglob("*.yaml")))
def test_examples_are_objects(example: str) -> None:
    for item in yaml.safe_load_all((TREE / example).read_text()):
        assert {"apiVersion", "kind", "metadata"} <= set(item)


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (TREE / "Makefile").read_text(), re.M))
    for path in [TREE / "README.md", TREE / "STYLE.md", *(TREE / "docs").glob("*.md")]:
        assert set(re.findall(r"(?:`|    )make ([a-z-]+)", path.read_text())) <= targets
