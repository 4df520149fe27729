"""``hpk image``: one command for both kinds of images, those of Pods (hpk.kubelet) and the control plane's (hpk.bootstrap.image)."""

from __future__ import annotations

import argparse
import asyncio

from hpk.bootstrap.image import cli as control_plane
from hpk.kubelet import imagecli

_POD_IMAGES = ("ls", "pull", "prune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="image_command", metavar="COMMAND", required=True)
    imagecli.add_commands(commands)
    control_plane.add_commands(commands)


def run(args: argparse.Namespace) -> int:
    if args.image_command in _POD_IMAGES:
        return asyncio.run(imagecli.run(args))
    return control_plane.run(args)
