"""Apptainer where the distribution has none: Debian sid's package in a prefix of its own, with the C library that it wants.

Nothing of the system is upgraded: the packages come through an apt configuration apart, made from the machine's own sources with
another suite, are only downloaded and unpacked, and the two programs are told where their C library is.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile

from tests.testbed import commands, layout

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
        _install(_download())
    for name in _LINKS:
        link = f"/usr/local/bin/{name}"
        if not os.path.lexists(link):
            os.symlink(f"{layout.APPTAINER}/bin/apptainer", link)


def debian_source(texts: list[str], suite: str) -> str:
    """From the texts of the machine's apt sources, the one-line source of ``suite`` on the same mirror. Raises TestbedError."""
    codename = _codename()
    for text in texts:
        for uri, options in _one_line_sources(text, codename) or _deb822_sources(text, codename):
            return f"deb {options}{uri} {suite} main\n"
    raise commands.TestbedError(
        f"no source of Debian {codename} main in /etc/apt/sources.list*: Apptainer cannot be fetched; install it yourself"
    )


def _codename() -> str:
    match = re.search(r"^VERSION_CODENAME=(\w+)", commands.read("/etc/os-release"), re.M)
    return match.group(1) if match else ""


def _one_line_sources(text: str, codename: str) -> list[tuple[str, str]]:
    pattern = rf"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+{codename}\s+(?:.*\s)?main\b"
    return [(match.group(2), match.group(1) or "") for match in re.finditer(pattern, text, re.M)]


def _deb822_sources(text: str, codename: str) -> list[tuple[str, str]]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if codename in fields.get("suites", "").split() and "main" in fields.get("components", "").split():
            key = fields.get("signed-by", "")
            found.append((fields["uris"].split()[0], f"[signed-by={key}] " if key.startswith("/") else ""))
    return found


def _download() -> dict[str, str]:
    """Fetch the packages into the cache and return their paths by name."""
    folder = f"{layout.CACHE}/debs"
    os.makedirs(folder, exist_ok=True)
    found = {name: glob.glob(f"{folder}/{name}_*.deb") for name in _SOURCES}
    if all(found.values()):
        return {name: paths[0] for name, paths in found.items()}
    texts = [commands.read(path) for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.list")]]
    texts += [commands.read(path) for path in glob.glob("/etc/apt/sources.list.d/*.sources")]
    with tempfile.TemporaryDirectory() as apt:
        for name in ("lists/partial", "archives/partial"):
            os.makedirs(f"{apt}/{name}")
        commands.write(f"{apt}/sources.list", "".join(debian_source(texts, suite) for suite in sorted(set(_SOURCES.values()))))
        options = {
            "Dir::Etc::SourceList": f"{apt}/sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": f"{apt}/lists",
            "Dir::Cache": apt,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        commands.run(["apt-get", *flags, "update", "-q"], timeout=600)
        for name, suite in _SOURCES.items():
            commands.run(["apt-get", *flags, "download", f"{name}/{suite}"], cwd=folder, timeout=600)
    return {name: glob.glob(f"{folder}/{name}_*.deb")[0] for name in _SOURCES}


def _install(debs: dict[str, str]) -> None:
    new = f"{layout.APPTAINER}.new"
    shutil.rmtree(new, ignore_errors=True)
    with tempfile.TemporaryDirectory() as unpacked:
        for name, path in debs.items():
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
