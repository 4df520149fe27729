"""Single packages of another Debian suite, downloaded without changing the machine's sources or upgrading anything.

They come through an apt configuration apart, made from the machine's own sources with the other suite's name.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile

from tests.testbed import commands, layout


def debian_source(texts: list[str], suite: str) -> str:
    """From the texts of the machine's apt sources, the one-line source of ``suite`` on the same mirror. Raises TestbedError."""
    codename = _codename()
    for text in texts:
        for uri, options in _one_line_sources(text, codename) or _deb822_sources(text, codename):
            return f"deb {options}{uri} {suite} main\n"
    raise commands.TestbedError(
        f"no source of Debian {codename} main in /etc/apt/sources.list*: packages of another suite cannot be fetched"
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


def download(wanted: dict[str, str]) -> dict[str, str]:
    """Fetch packages (name -> suite) into the cache, unless they are there, and return their paths by name. Raises TestbedError."""
    folder = f"{layout.CACHE}/debs"
    os.makedirs(folder, exist_ok=True)
    found = {name: glob.glob(f"{folder}/{name}_*.deb") for name in wanted}
    if all(found.values()):
        return {name: paths[0] for name, paths in found.items()}
    texts = [commands.read(path) for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.list")]]
    texts += [commands.read(path) for path in glob.glob("/etc/apt/sources.list.d/*.sources")]
    with tempfile.TemporaryDirectory() as apt:
        for name in ("lists/partial", "archives/partial"):
            os.makedirs(f"{apt}/{name}")
        commands.write(f"{apt}/sources.list", "".join(debian_source(texts, suite) for suite in sorted(set(wanted.values()))))
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
        for name, suite in wanted.items():
            commands.run(["apt-get", *flags, "download", f"{name}/{suite}"], cwd=folder, timeout=600)
    return {name: glob.glob(f"{folder}/{name}_*.deb")[0] for name in wanted}
