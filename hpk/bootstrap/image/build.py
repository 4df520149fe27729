"""Stage the programs and make the SIF: once for the same inputs, never half."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat

from hpk import errors, files, paths, procs
from hpk.bootstrap.image import cache, parts, progress

#: How the SIF is compressed (mksquashfs). Measured with 380 MB of programs on 2 busy CPUs, seconds from nothing to an API server that
#: is ready, the image not in memory: lz4 3.6 (167 MB, made in 1 s), zstd level 3 5.5 (116 MB, 1.5 s), gzip 4.8 (115 MB, 35 s); without
#: an image 3.8. The start counts more than 50 MB of disk.
COMPRESSION = "-comp lz4"
_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, SUSE with a link
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora and the RHEL family
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
_RELEASE = "etc/hpk-release"


def key(folder: str, programs_key: str, arch: str) -> str:
    """Return the key of an image: what it is made from. ``folder`` is ``containers``."""
    etc = os.path.join(folder, "etc")
    return parts.digest(
        "image",
        arch,
        programs_key,
        parts.read(os.path.join(folder, "Singularityfile")),
        *(parts.read(os.path.join(etc, name)) for name in sorted(os.listdir(etc))),
    )


def _note(output: str) -> str:
    """The file beside the image that says what it was made from."""
    return output + ".json"


def is_current(output: str, wanted: str) -> bool:
    """Whether ``output`` exists and was made from what ``wanted`` stands for."""
    try:
        note = files.read_json(_note(output))
        size = os.path.getsize(output)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(note, dict) and note.get("key") == wanted and note.get("size") == size


def make(store: cache.Cache, folder: str, programs: dict[str, str], wanted: str, output: str, show: progress.Progress) -> None:
    """Build ``output`` from ``programs`` (name to path), check that it runs here, and put it in place. The cache must be locked.

    Raises MissingTool without Apptainer, ProcessError when the build fails.
    """
    runtime = procs.container_runtime()
    try:
        os.makedirs(os.path.dirname(output), exist_ok=True)
    except OSError as exc:
        raise errors.InvalidInput(f"--output: {output}: {exc.strerror}") from exc
    temporary = os.path.join(os.path.dirname(output), f".{os.path.basename(output)}.{secrets.token_hex(4)}.tmp")
    try:
        with show.step("control-plane image") as step:
            stage = store.temporary("stage")
            _stage(stage, folder, programs, wanted)
            step.announce("building")
            version = _sif(runtime, os.path.join(folder, "Singularityfile"), stage, temporary)
            size = os.path.getsize(temporary)
            step.detail = f"{progress.megabytes(size)}, runs here: {version}"
        os.chmod(temporary, 0o755)  # noqa: S103 - nothing secret; a site may share its image
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_note(output))  # first: the old note must never stand beside the new image
        os.rename(temporary, output)
        versions = {program.name: program.version for program in parts.PROGRAMS}
        files.write_json(_note(output), {"key": wanted, "size": size, "programs": versions}, mode=0o644)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _stage(stage: str, folder: str, programs: dict[str, str], wanted: str) -> None:
    """Lay out the files that the Singularityfile names."""
    for directory in ("usr/bin", "etc/ssl/certs"):
        os.makedirs(os.path.join(stage, directory))
    for name, path in programs.items():
        _link(path, os.path.join(stage, "usr/bin", name))
    for name in os.listdir(os.path.join(folder, "etc")):
        shutil.copyfile(os.path.join(folder, "etc", name), os.path.join(stage, "etc", name))
    bundle = next((path for path in _CA_BUNDLES if os.path.isfile(path)), None)
    if bundle:
        shutil.copyfile(bundle, os.path.join(stage, "etc/ssl/certs/ca-certificates.crt"))
    lines = [f"{program.name} {program.version}\n" for program in parts.PROGRAMS] + [f"key {wanted}\n"]
    files.write_atomic(os.path.join(stage, _RELEASE), "".join(lines), mode=0o644)
    for name in os.listdir(os.path.join(stage, "etc")):
        path = os.path.join(stage, "etc", name)
        os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)  # a narrow umask must not shut the image's users out


def _link(path: str, target: str) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, target)
        os.chmod(target, stat.S_IMODE(os.stat(path).st_mode))


def _sif(runtime: str, singularityfile: str, stage: str, output: str) -> str:
    """Make ``output`` and return what its API server says of itself. Raises ProcessError when it cannot be made or does not run here."""
    plain = [runtime, "build", "--force", output, singularityfile]
    if "--mksquashfs-args" in procs.run([runtime, "build", "--help"]).stdout:
        packed = [*plain[:3], "--mksquashfs-args", COMPRESSION, *plain[3:]]
        try:
            procs.run(packed, cwd=stage).check()
            return _version(runtime, output)
        except errors.ProcessError:
            pass  # perhaps tools or a kernel without this compression: the default then, which is slow but everywhere
    procs.run(plain, cwd=stage).check()
    return _version(runtime, output)


def _version(runtime: str, image: str) -> str:
    """Return what the API server in ``image`` says of itself. Raises ProcessError."""
    root = ["--no-privs"] if os.geteuid() == 0 else []  # a root without all capabilities (in a container) may not pass them on
    argv = [runtime, "exec", *root, "--no-home", image, "/usr/bin/kube-apiserver", "--version"]
    return procs.run(argv, cwd="/").check().stdout.strip()


def put_kubectl(where: paths.Paths, program: str, show: progress.Progress) -> None:
    """Copy kubectl to the user's ``bin`` unless it is there already."""
    target = os.path.join(where.bin, "kubectl")
    version = next(item.version for item in parts.PROGRAMS if item.name == "kubectl")
    try:
        same = os.path.getsize(target) == os.path.getsize(program) and os.path.getmtime(target) == os.path.getmtime(program)
    except FileNotFoundError:
        same = False
    if same:
        return
    files.private_dir(where.bin)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with show.step(f"kubectl {version}") as step:
            shutil.copy2(program, temporary)
            os.chmod(temporary, 0o755)  # noqa: S103 - a program
            os.rename(temporary, target)
            step.detail = target
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
