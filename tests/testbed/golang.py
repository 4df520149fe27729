"""Go, where the machine has none that is new enough for Kubernetes: Debian's newest package in a prefix of its own."""

from __future__ import annotations

import os
import re
import shutil

from tests.testbed import commands, debs, layout

#: Debian's packages of this release run on older suites too: the programs are static.
RELEASE = "1.26"
_SOURCES = {f"golang-{RELEASE}-go": "trixie-backports", f"golang-{RELEASE}-src": "trixie-backports"}
_PREFIX = f"/opt/go-{RELEASE}"
_LINK = "/usr/local/bin/go"


def needed() -> tuple[int, int]:
    """Go release that the pinned modules of the control plane want."""
    folder = f"{layout.TREE}/containers/go"
    releases = [re.search(r"^go (\d+)\.(\d+)", commands.read(f"{folder}/{name}/go.mod"), re.M) for name in os.listdir(folder)]
    return max((int(found.group(1)), int(found.group(2))) for found in releases if found)


def _release(go: str) -> tuple[int, int]:
    found = re.search(r"go(\d+)\.(\d+)", commands.run([go, "version"], check=False).stdout)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def find() -> str | None:
    """Path of a go command that is new enough."""
    wanted = needed()
    for folder in [*os.environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/local/go/bin", f"{_PREFIX}/bin"]:
        go = shutil.which("go", path=folder) if folder else None
        if go and _release(go) >= wanted:
            return go
    return None


def ensure() -> str:
    """Return the path of a go command, installed if need be as /usr/local/bin/go. Raises TestbedError."""
    found = find()
    if found is None:
        commands.say(f"installing Go {RELEASE}")
        _install(debs.download(_SOURCES))
        found = find()
        if found is None:
            raise commands.TestbedError(f"Go {RELEASE} is too old for containers/go: {'.'.join(map(str, needed()))} is needed")
    if not shutil.which("go"):
        os.symlink(found, _LINK)
    return found


def _install(packages: dict[str, str]) -> None:
    """Unpack below the prefix: the packages have bin, pkg in usr/lib/go-X and the rest in usr/share/go-X, joined by relative links."""
    unpacked = f"{_PREFIX}.new"
    shutil.rmtree(unpacked, ignore_errors=True)
    for path in packages.values():
        commands.run(["dpkg-deb", "-x", path, unpacked])
    shutil.rmtree(_PREFIX, ignore_errors=True)
    os.rename(unpacked, _PREFIX)
    os.symlink(f"usr/lib/go-{RELEASE}/bin", f"{_PREFIX}/bin")
