"""The control plane's decisions without any process: dry run, image, node Ready."""

from __future__ import annotations

import os
import pathlib

import pytest

from hpk import config, errors, paths
from hpk.bootstrap import main, statedir
from hpk.bootstrap.components import ours
from tests.unit.bootstrap.test_component import a_run

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "control-plane.txt"


def test_dry_run() -> None:
    """The whole start as a person would type it. HPK_UPDATE_GOLDEN=1 writes the file anew."""
    text = main.transcript(a_run())
    if os.environ.get("HPK_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_missing_image_tells_how_to_get_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.InvalidInput, match="no control-plane image") as caught:
        statedir.find_image(paths.Paths(str(tmp_path)), config.Config())
    assert "hpk image build" in (caught.value.hint or "")


def test_configured_image_is_named_by_its_key(tmp_path: pathlib.Path) -> None:
    settings = config.Config(control_plane=config.ControlPlaneConfig(image=str(tmp_path / "no.sif")))
    with pytest.raises(errors.InvalidInput, match=r"controlPlane\.image: .*/no\.sif: No such file"):
        statedir.find_image(paths.Paths(str(tmp_path)), settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_image(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "x.sif"
    image.touch(mode=0)
    settings = config.Config(control_plane=config.ControlPlaneConfig(image=str(image)))
    with pytest.raises(errors.InvalidInput, match="Permission denied"):
        statedir.find_image(paths.Paths(str(tmp_path)), settings)


def a_node(status: str, heartbeat: str | None) -> dict[str, object]:
    return {"status": {"conditions": [{"type": "Ready", "status": status, "lastHeartbeatTime": heartbeat}]}}


@pytest.mark.parametrize(
    ("item", "ready"),
    [
        (a_node("True", "1970-01-01T00:16:40Z"), True),
        (a_node("True", "1970-01-01T00:16:39Z"), False),  # the last run's word
        (a_node("False", "1970-01-01T00:16:41Z"), False),
        (a_node("True", None), False),
        ({}, False),
    ],
)
def test_node_is_ready_by_this_run_s_word(item: dict[str, object], ready: bool) -> None:
    assert ours.node_ready(item, 1000.0) is ready


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        ({"holderIdentity": "c1_1", "renewTime": "1970-01-01T00:16:40.000001Z"}, True),
        ({"holderIdentity": "c1_1", "renewTime": "1970-01-01T00:16:39.999999Z"}, False),
        ({"holderIdentity": "", "renewTime": "1970-01-01T00:16:41.000000Z"}, False),
        ({}, False),
    ],
)
def test_scheduler_works_when_it_renewed_its_lease(spec: dict[str, str], held: bool) -> None:
    assert ours.lease_held({"spec": spec}, 1000.0) is held
