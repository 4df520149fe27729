"""Programs built from Go modules that are pinned in the tree (containers/go/<module>/go.mod and go.sum)."""

from __future__ import annotations

import os
import re

from hpk import errors, procs
from hpk.bootstrap.image import cache, parts, progress

#: What the go command is told, whatever the user's own settings: the pins decide (-mod=readonly), and nothing of the machine gets in.
_GOFLAGS = "-mod=readonly -trimpath -buildvcs=false"
#: -s -w: no symbol table and no debugger data, a third of the size.
_LDFLAGS = "-s -w"


def _module_dir(folder: str, module: str) -> str:
    return os.path.join(folder, "go", module)


def _program_key(folder: str, program: parts.Program, arch: str) -> str:
    module = _module_dir(folder, program.module)
    pins = [parts.read(os.path.join(module, name)) for name in ("go.mod", "go.sum")]
    return parts.digest("source", arch, program.package, program.ldflags, _LDFLAGS, _GOFLAGS, *pins)


def key(folder: str, arch: str) -> str:
    """Return a key that changes with any pin or build option. ``folder`` is ``containers``."""
    return parts.digest("source", *(_program_key(folder, program, arch) for program in parts.PROGRAMS))


def go_version(text: str) -> tuple[int, ...]:
    """``go1.26.8`` or ``1.26.0`` as (1, 26, 8); a release candidate counts as its release. Raises ValueError."""
    found = re.match(r"(?:go)?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        raise ValueError(text)
    return tuple(int(number or 0) for number in found.groups())


def _needed(folder: str, module: str) -> str:
    text = parts.read(os.path.join(_module_dir(folder, module), "go.mod")).decode()
    found = re.search(r"^go (\S+)$", text, re.M)
    if not found:
        raise errors.InvalidInput(f"{_module_dir(folder, module)}/go.mod: has no go line")
    return found.group(1)


def _environment(arch: str) -> dict[str, str]:
    return {**os.environ, "GOFLAGS": _GOFLAGS, "CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch, "GOWORK": "off"}


def find_go(folder: str, arch: str) -> str:
    """Return the path of a go command that is new enough for every module. Raises MissingTool.

    Go 1.21 and later fetch a newer toolchain by themselves where GOTOOLCHAIN lets them: so it is asked inside the module.
    """
    module = max((program.module for program in parts.PROGRAMS), key=lambda module: go_version(_needed(folder, module)))
    needed = _needed(folder, module)
    hint = f"put Go >= {needed} first on PATH (https://go.dev/dl; many sites have `module load go`), or use --from release"
    go = procs.find("go", hint=hint)
    answer = procs.run([go, "env", "GOVERSION"], cwd=_module_dir(folder, module), env=_environment(arch))
    has = answer.stdout.strip()
    try:
        enough = answer.returncode == 0 and go_version(has) >= go_version(needed)
    except ValueError:
        enough = False
    if not enough:
        said = " ".join((has or answer.stderr).split()) or "no version"
        raise errors.MissingTool(f"{go} is too old: {needed} is needed, it says: {said}", hint=hint)
    return go


def ensure(store: cache.Cache, folder: str, arch: str, show: progress.Progress) -> dict[str, str]:
    """Return program name to path in the cache, after building what is not there. The cache must be locked."""
    missing = [program for program in parts.PROGRAMS if not store.has(program.name, _program_key(folder, program, arch))]
    go = find_go(folder, arch) if missing else ""
    for program in parts.PROGRAMS:
        if program not in missing:
            show.say(f"  {program.name} {program.version}: already there")
            continue
        with show.step(f"{program.name} {program.version}") as step:
            step.announce("building (minutes the first time, seconds later)")
            with store.new(program.name, _program_key(folder, program, arch)) as path:
                argv = [go, "build", "-ldflags", f"{_LDFLAGS} {program.ldflags}".strip(), "-o", path, program.package]
                _build(argv, _module_dir(folder, program.module), arch)
                step.detail = f"{progress.megabytes(os.path.getsize(path))} built"
    return {program.name: store.path(program.name) for program in parts.PROGRAMS}


def _build(argv: list[str], folder: str, arch: str) -> None:
    done = procs.run(argv, cwd=folder, env=_environment(arch))
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith(("go: downloading", "#"))]
        raise errors.ProcessError(
            f"go build {argv[-1]}: {lines[-1] if lines else f'exit code {done.returncode}'}",
            argv=argv,
            returncode=done.returncode,
            stderr=done.stderr,
            hint="Go fetches modules by GOPROXY: is it reachable from this machine? `go env GOPROXY` shows it",
        )
