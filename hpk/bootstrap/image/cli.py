"""``hpk image build|files|checksums``: the control-plane image, the release files for it, their published checksums."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from hpk import config as configuration
from hpk import errors, files, paths, procs
from hpk.bootstrap.image import build, cache, download, parts, progress, release, source


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands that run() serves."""
    text = "get the programs and make the control-plane image"
    make = commands.add_parser("build", help=text, description=f"{text.capitalize()}.")
    make.add_argument(
        "--from",
        dest="source",
        choices=("release", "source"),
        help="where programs come from: official release files, or Go modules (needs Go); default: controlPlane.imageSource",
    )
    make.add_argument("--mirror", metavar="URL", help="URL or folder with the release files by host and path (`hpk image files`)")
    make.add_argument("--output", metavar="FILE", help="the image; default: ~/.hpk/images/control-plane.sif")
    make.add_argument("--force", action="store_true", help="build it again, also where the site provides one")
    commands.add_parser("files", help="list the control plane's release files, for a mirror: wget -x -i <(hpk image files)")
    sums = commands.add_parser("checksums", help="print the publishers' checksums as lines for hpk.yaml: look at them before you use them")
    sums.add_argument("--mirror", metavar="URL", help="ask there instead of the official hosts")


def run(args: argparse.Namespace) -> int:
    commands: dict[str, Callable[[argparse.Namespace], None]] = {"build": _build, "files": _files, "checksums": _checksums}
    commands[args.image_command](args)
    return 0


def _files(args: argparse.Namespace) -> None:
    arch = parts.architecture()
    for file in parts.RELEASE_FILES:
        print(file.for_arch(file.url, arch))


def _checksums(args: argparse.Namespace) -> None:
    lines = [f"    {name}: {value}" for name, value in release.published(parts.architecture(), args.mirror or "").items()]
    print("controlPlane:", "  releaseChecksums:", *lines, sep="\n")


def _build(args: argparse.Namespace) -> None:
    where = paths.Paths.default()
    config = configuration.load(where).control_plane
    show = progress.Progress()
    if config.image and not args.force and not args.output:
        if not os.path.exists(config.image):
            raise errors.InvalidInput(
                f"controlPlane.image: {config.image} does not exist",
                hint="unset HPK_CONTROL_PLANE_IMAGE or controlPlane.image, or add --force",
            )
        show.say(f"nothing to do: {config.image} is used (controlPlane.image or HPK_CONTROL_PLANE_IMAGE); --force builds your own")
        return
    output = os.path.abspath(args.output) if args.output else where.control_plane_image
    if os.path.isdir(output):
        raise errors.InvalidInput(f"--output: {output} is a folder; name a file")
    origin = args.source or config.image_source
    if args.mirror and origin != "release":
        raise errors.InvalidInput("--mirror: only for --from release; Go takes its mirror from GOPROXY")
    mirror = args.mirror or config.release_mirror
    if mirror:
        download.check_url(mirror, "--mirror" if args.mirror else "controlPlane.releaseMirror")
    arch, folder = parts.architecture(), parts.containers_dir()
    programs_key = source.key(folder, arch) if origin == "source" else release.key(arch, config.release_checksums)
    wanted = build.key(folder, programs_key, arch)
    if not args.force and _nothing_to_do(output, wanted, show):
        return
    procs.container_runtime()  # now, not after minutes of building
    store = cache.Cache(paths.cache_dir())
    with store.locked(show):
        if not args.force and _nothing_to_do(output, wanted, show):
            return  # another builder was faster
        if origin == "source":
            programs = source.ensure(store, folder, arch, show)
        else:
            programs = release.ensure(store, arch, mirror, config.release_checksums, show)
        if not args.output:
            files.private_dir(where.images)
        build.make(store, folder, programs, wanted, output, show)
        if not args.output:
            build.put_kubectl(where, programs["kubectl"], show)
    show.say(f"{output}")


def _nothing_to_do(output: str, wanted: str, show: progress.Progress) -> bool:
    current = build.is_current(output, wanted)
    if current:
        show.say(f"nothing to do: {output} is up to date")
    return current
