"""Apptainer where the distribution has none: Debian sid's package in a prefix of its own, with the C library that it wants.

Nothing of the system is upgraded: the packages are only downloaded (debs.py) and unpacked, and the two programs are told where
their C library is.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile

from tests.testbed import commands, debs, layout

_LINKS = ("apptainer", "singularity")
_SOURCES = {"apptainer": "sid", "libc6": "trixie"}
_LIBRARIES = (
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libnss_*.so.2",
)
_TRIPLET = "x86_64-linux-gnu"


def ensure() -> None:
    """Put ``apptainer`` and ``singularity`` into /usr/local/bin, unless the machine has its own."""
    if shutil.which("apptainer", path="/usr/bin:/bin"):
        return
    if not os.path.exists(f"{layout.APPTAINER}/bin/apptainer"):
        commands.say("installing Apptainer")
        _install(debs.download(_SOURCES))
    for name in _LINKS:
        link = f"/usr/local/bin/{name}"
        if not os.path.lexists(link):
            os.symlink(f"{layout.APPTAINER}/bin/apptainer", link)


def _install(packages: dict[str, str]) -> None:
    new = f"{layout.APPTAINER}.new"
    shutil.rmtree(new, ignore_errors=True)
    with tempfile.TemporaryDirectory() as unpacked:
        for name, path in packages.items():
            commands.run(["dpkg-deb", "-x", path, f"{unpacked}/{name}"])
        package, libc = f"{unpacked}/apptainer", f"{unpacked}/libc6/usr/lib/{_TRIPLET}"
        for part in ("bin/apptainer", f"lib/{_TRIPLET}/apptainer"):
            _copy(f"{package}/usr/{part}", f"{new}/{part}")
        for part in ("etc/apptainer", "var/lib/apptainer"):
            _copy(f"{package}/{part}", f"{new}/{part}")
        for pattern in _LIBRARIES:
            for path in glob.glob(f"{libc}/{pattern}"):
                _copy(path, f"{new}/glibc/{os.path.basename(path)}")
    glibc = f"{layout.APPTAINER}/glibc"
    for program in ("bin/apptainer", f"lib/{_TRIPLET}/apptainer/bin/starter"):
        interpreter = ["--set-interpreter", f"{glibc}/{_LIBRARIES[0]}", "--set-rpath", f"{glibc}:/usr/lib/{_TRIPLET}"]
        commands.run(["patchelf", *interpreter, f"{new}/{program}"])
    # The starter takes as its prefix what is two levels above its folder; Debian's multiarch path is one level deeper.
    for name in ("etc", "var", "bin"):
        os.symlink(f"../{name}", f"{new}/lib/{name}")
    os.symlink(".", f"{new}/lib/lib")
    os.symlink("apptainer", f"{new}/bin/singularity")
    os.rename(new, layout.APPTAINER)


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    commands.run(["cp", "-a", source, target])
