"""Programs from their official release files."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Mapping

from hpk import errors
from hpk.bootstrap.image import cache, download, parts, progress


def key(arch: str, given: Mapping[str, str]) -> str:
    """Return a key that changes with any version, URL, member or checksum."""
    return parts.digest(
        "release", arch, *(f"{file.url} {sorted(file.members.items())} {parts.checksum(file, arch, given)}" for file in parts.RELEASE_FILES)
    )


def _checksums(arch: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the checksum of every release file. Raises InvalidInput naming those that have none: unchecked files are not used."""
    parts.check_names(given)
    found = {file.name: parts.checksum(file, arch, given) for file in parts.RELEASE_FILES}
    missing = [f"{name} {file_version(name)}" for name, value in found.items() if not value]
    if missing:
        raise errors.InvalidInput(
            f"no pinned checksum for {', '.join(missing)} ({arch}), and unchecked files are not used",
            hint="put the publishers' sums under controlPlane.releaseChecksums (`hpk image checksums` prints them), or use --from source",
        )
    return found


def file_version(name: str) -> str:
    return next(file.version for file in parts.RELEASE_FILES if file.name == name)


def ensure(store: cache.Cache, arch: str, mirror: str, given: Mapping[str, str], show: progress.Progress) -> dict[str, str]:
    """Return program name to path in the cache, after fetching what is not there. The cache must be locked.

    ``mirror`` is the base URL or folder to use instead of the official hosts; ``given`` the site's checksums.
    """
    mirror = download.check_url(mirror, "--mirror") if mirror else ""
    checksums = _checksums(arch, given)
    for file in parts.RELEASE_FILES:
        wanted = parts.digest("release", file.for_arch(file.url, arch), checksums[file.name])
        if all(store.has(program, wanted) for program in file.programs):
            show.say(f"  {file.name} {file.version}: already there")
            continue
        with show.step(f"{file.name} {file.version}") as step:
            url = download.mirrored(file.for_arch(file.url, arch), mirror)

            def report(done: int, whole: int | None, step: progress.Step = step) -> None:
                step.update(progress.megabytes(done) + (f" of {progress.megabytes(whole)}" if whole else ""))

            fetched = store.temporary(f"{file.name}.part")
            try:
                size = download.fetch(url, fetched, checksums[file.name], name=file.name, report=report)
                for program, member in file.members.items():
                    with store.new(program, wanted) as path:
                        _unpack(fetched, file.for_arch(member, arch), path)
            finally:
                _remove(fetched)
            step.detail = f"{progress.megabytes(size)} downloaded, {checksums[file.name].partition(':')[0]} right"
    return {program: store.path(program) for file in parts.RELEASE_FILES for program in file.programs}


def _unpack(archive: str, member: str, path: str) -> None:
    """Write ``member`` of the tar ``archive`` to ``path``, or the whole file where ``member`` is empty."""
    if not member:
        shutil.copyfile(archive, path)
        return
    try:
        with tarfile.open(archive, "r:*") as tar:
            source = tar.extractfile(member)
            if source is None:
                raise KeyError(member)
            with source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, EOFError) as exc:
        raise errors.HPKError(f"{os.path.basename(archive)}: not a tar archive: {exc}") from exc
    except KeyError as exc:
        raise errors.HPKError(f"{os.path.basename(archive)}: has no file {member}") from exc


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # download.fetch() took it away


def published(arch: str, mirror: str = "") -> dict[str, str]:
    """Return file name to the SHA-256 that its publisher states, asked over HTTPS; for people to look at and pin.

    Raises HPKError when a text cannot be fetched or does not name the file.
    """
    mirror = download.check_url(mirror, "--mirror") if mirror else ""
    found = {}
    for file in parts.RELEASE_FILES:
        url = download.mirrored(file.for_arch(file.published, arch), mirror)
        base = os.path.basename(file.for_arch(file.url, arch))
        text = download.fetch_text(url, name=file.name)
        lines = [line.split() for line in text.splitlines() if line.strip()]
        named = [line[0] for line in lines if len(line) == 2 and os.path.basename(line[1].lstrip("*")) == base]
        alone = lines[0] if len(lines) == 1 and len(lines[0]) == 1 else []
        value = next(iter(named or alone), "").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise errors.HPKError(f"{file.name}: {download.public(url)} does not state the SHA-256 of {base}")
        found[file.name] = f"sha256:{value}"
    return found
