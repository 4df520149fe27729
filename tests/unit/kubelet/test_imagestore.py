"""What may leave the image cache: never what a Pod uses or asked for just now, the longest unused first, no more than needed."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from hpk import cli, config, files, paths
from hpk.kubelet import images, imagestore

HOUR = 3600.0


@pytest.fixture
def where(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> paths.Paths:
    monkeypatch.setenv("HPK_HOME", str(tmp_path))
    monkeypatch.setenv("HPK_SITE_CONFIG", str(tmp_path / "none.yaml"))
    found = paths.Paths(str(tmp_path))
    for folder in (found.pods, os.path.join(found.images, "refs")):
        files.private_dir(folder)
    return found


def image(where: paths.Paths, letter: str, *, size: int = 100, unused: float = HOUR, ref: str = "") -> str:
    path = os.path.join(where.images, letter * 64 + ".sif")
    with open(path, "wb") as file:
        file.write(b"x" * size)
    record = path.removesuffix(".sif") + ".json"
    files.write_json(record, {"size": size, "config": {}, "source": f"registry/{letter}", "pulledAt": time.time() - 2 * HOUR})
    old = time.time() - unused
    os.utime(record, (old, old))
    if ref:
        files.write_json(
            os.path.join(where.images, "refs", f"{letter}.json"), {"ref": ref, "manifest": f"sha256:{letter * 64}", "digest": "sha256:d"}
        )
    return path


def pod(where: paths.Paths, name: str, *images: str) -> None:
    folder = where.pod("default", name, f"uid-{name}")
    files.private_dir(folder.root)
    files.write_json(folder.plan, {"containers": [{"imagePath": path} for path in images], "initContainers": []})


def left(where: paths.Paths) -> str:
    return "".join(sorted(name[0] for name in os.listdir(where.images) if name.endswith(".sif")))


def test_longest_unused_go_first_and_only_as_many_as_needed(where: paths.Paths) -> None:
    for number, letter in enumerate("dcba"):
        image(where, letter, unused=HOUR * (number + 1))
    removed, size = imagestore.collect(where, 250)
    assert [one.hex[0] for one in removed] == ["a", "b"]
    assert (left(where), size) == ("cd", 200)
    assert imagestore.collect(where, 250) == ([], 200)


def test_images_of_pods_stay_however_old(where: paths.Paths) -> None:
    pod(where, "one", image(where, "a", unused=9 * HOUR))
    image(where, "b", unused=HOUR)
    removed, size = imagestore.collect(where, 0)
    assert ([one.hex[0] for one in removed], size, left(where)) == (["b"], 100, "a")


def test_what_was_asked_for_just_now_stays(where: paths.Paths) -> None:
    path = image(where, "a", unused=HOUR)
    assert imagestore.touch(path)
    image(where, "b", unused=imagestore.MIN_AGE - 10)
    assert imagestore.collect(where, 0) == ([], 200)
    assert os.path.exists(path.removesuffix(".sif") + ".json")  # put back


def test_an_image_that_is_being_pulled_stays(where: paths.Paths) -> None:
    image(where, "a")
    with open(os.path.join(where.images, "a" * 64 + ".lock"), "wb") as lock:
        assert imagestore.try_lock(lock.fileno())
        assert imagestore.collect(where, 0) == ([], 100)
    assert imagestore.collect(where, 0)[1] == 0


def test_leftovers_of_killed_pulls_go_within_the_bound(where: paths.Paths) -> None:
    path = image(where, "a")
    os.unlink(path.removesuffix(".sif") + ".json")
    assert imagestore.collect(where, 10**9) == ([], 100)  # it may be renamed just now, and its record come next
    os.utime(path, (1.0, 1.0))
    image(where, "b")
    assert imagestore.collect(where, 10**9)[1] == 100
    assert left(where) == "b"


def test_the_control_planes_image_is_none_of_them(where: paths.Paths) -> None:
    with open(where.control_plane_image, "wb") as file:
        file.write(b"x" * 1000)
    assert imagestore.collect(where, 0) == ([], 0)
    assert os.path.exists(where.control_plane_image)


async def test_names_of_a_removed_image_go_with_it(where: paths.Paths) -> None:
    image(where, "a", ref="docker.io/library/a:1")
    image(where, "b", ref="docker.io/library/b:1")
    pod(where, "one", os.path.join(where.images, "b" * 64 + ".sif"))
    imagestore.collect(where, 0)
    assert os.listdir(os.path.join(where.images, "refs")) == ["b.json"]


def test_keep_tells_what_was_removed_meanwhile(where: paths.Paths) -> None:
    manager = images.ImageManager(config=config.Config(), paths=where)
    found = [images.ImageInfo("x", "id", image(where, letter), {}) for letter in "ab"]
    local = images.ImageInfo("/my.sif", "/my.sif", "/my.sif", {})
    assert manager.keep([*found, local])
    assert imagestore.collect(where, 0) == ([], 200)
    os.unlink(found[0].path)
    assert not manager.keep(found)


def test_list_and_prune(where: paths.Paths, capsys: pytest.CaptureFixture[str]) -> None:
    image(where, "a", size=2048, ref="docker.io/library/app:1")
    pod(where, "one", image(where, "b", ref="docker.io/library/used:1"))
    assert cli.main(["image", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "app" in line] == [["docker.io/library/app:1", "a" * 12, "2.0", "KiB", "2h", "1h", "0"]]
    assert next(line for line in lines if "used" in line).split()[-1] == "1"
    assert cli.main(["image", "prune", "--dry-run"]) == 0
    assert left(where) == "ab"
    assert "1 images would go, 2.0 KiB" in capsys.readouterr().err
    assert cli.main(["image", "prune"]) == 0
    assert capsys.readouterr().out.split()[0] == "docker.io/library/app:1"
    assert left(where) == "b"


def test_bad_input(where: paths.Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image", "pull", "UPPER//x"]) == 1
    out = capsys.readouterr().err
    assert out.startswith("hpk: error: UPPER//x: InvalidImageName: ")
    assert out.count("\n") == 1
    with open(where.config, "w") as file:
        file.write("images: {maxBytes: -1}\n")
    assert cli.main(["image", "ls"]) == 1
    assert "images.maxBytes: -1 is negative" in capsys.readouterr().err
