"""``hpk image ls|pull|prune``: the cache of Pods' images from the login node, with or without a cluster that runs."""

from __future__ import annotations

import argparse
import sys
import time

from hpk import config as configuration
from hpk import errors, paths
from hpk.kubelet import images, imagestore


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands that run() serves."""
    commands.add_parser("ls", help="list the images in the cache, what they take and how many Pods use them")
    text = "bring images into the cache, or up to date, before Pods ask for them"
    pull = commands.add_parser("pull", help=text, description=f"{text.capitalize()}. Credentials: ~/.docker/config.json.")
    pull.add_argument("image", nargs="+", metavar="IMAGE", help="as in a Pod: busybox, registry.example.org/a/b:1, quay.io/x@sha256:...")
    text = "remove the images that no Pod uses"
    prune = commands.add_parser("prune", help=text, description=f"{text.capitalize()} and that no Pod asked for in the last two minutes.")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")


async def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    config = configuration.load(where)
    try:
        if args.image_command == "ls":
            _ls(where, config.images.max_bytes)
        elif args.image_command == "prune":
            _prune(where, args.dry_run)
        else:
            await _pull(where, config, args.image)
    except OSError as exc:
        raise errors.HPKError(f"{exc.filename or where.images}: {exc.strerror or exc}") from exc
    return 0


def _ls(where: paths.Paths, max_bytes: int) -> None:
    images, used, now = imagestore.stored(where), imagestore.in_use(where), time.time()
    rows = [("IMAGE", "DIGEST", "SIZE", "PULLED", "USED", "PODS")]
    for image in reversed(images):
        for name in image.names or (image.source or "(left by a pull that was killed)",):
            ages = _age(now - image.pulled_at), _age(now - image.used_at)
            rows.append((name, image.hex[:12], _size(image.size), *ages, str(used.get(image.hex, 0))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    bound = f"of {_size(max_bytes)} (images.maxBytes)" if max_bytes else "(images.maxBytes: no bound)"
    print(f"{len(images)} images, {_size(sum(image.size for image in images))} {bound}", file=sys.stderr)


async def _pull(where: paths.Paths, config: configuration.Config, names: list[str]) -> None:
    manager = images.ImageManager(config=config, paths=where)
    for name in names:
        try:
            found = await manager.ensure(name, policy="Always")
        except errors.NotReady as exc:
            raise errors.HPKError(f"{name}: {exc.reason}: {exc.message}") from exc
        print(found.image_id, flush=True)


def _prune(where: paths.Paths, dry_run: bool) -> None:
    used, now, freed, removed = imagestore.in_use(where), time.time(), 0, 0
    for image in imagestore.stored(where):
        if image.hex in used or now - image.used_at < imagestore.MIN_AGE:
            continue
        if dry_run or imagestore.remove(where, image):
            print(", ".join(image.names) or image.source or image.path, image.hex[:12], _size(image.size))
            freed, removed = freed + image.size, removed + 1
    print(f"{removed} images {'would go' if dry_run else 'removed'}, {_size(freed)}", file=sys.stderr)


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def _age(seconds: float) -> str:
    """As kubectl shows ages: one unit."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
