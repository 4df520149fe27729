"""agnhost, the program of Kubernetes' own end-to-end tests, built from its Go module."""

from __future__ import annotations

import json
import os
import re
import shutil

from tests.testbed import commands, layout

VERSION = "v1.36.3"
"""Release of Kubernetes."""
_MODULE = "k8s.io/kubernetes"
_FOLDER = f"{layout.CACHE}/agnhost"


def ensure() -> str:
    """Build agnhost if that was not done yet and return its path. Raises TestbedError when Go is missing or the build fails."""
    program = f"{_FOLDER}/agnhost-{VERSION}"
    if os.path.exists(program):
        return program
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise commands.TestbedError("go is not on PATH: the test image agnhost is built from its Go module; install Go")
    commands.say("building agnhost (some minutes, once)")
    source = f"{_FOLDER}/source"
    os.makedirs(source, exist_ok=True)
    commands.write(f"{source}/go.mod", "module testbed\n")
    found = json.loads(commands.run([go, "mod", "download", "-json", f"{_MODULE}@{VERSION}"], cwd=source, timeout=900).stdout)
    commands.write(f"{source}/go.mod", go_mod(commands.read(found["GoMod"])))
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false"}
    build = ["nice", "-n", "10", go, "build", "-trimpath", "-ldflags", "-s -w", "-o", f"{program}.new", f"{_MODULE}/test/images/agnhost"]
    commands.run(build, cwd=source, env=env, timeout=3600)
    os.replace(f"{program}.new", program)
    return program


def go_mod(kubernetes: str) -> str:
    """go.mod of a module that builds parts of Kubernetes, from Kubernetes' own go.mod.

    There the staging modules (k8s.io/api, ...) are folders beside it; here they are their published releases: v0.36.3 for v1.36.3.
    """
    staging = sorted(set(re.findall(r"^\s*(?:replace )?(k8s\.io/\S+) => \./staging/", kubernetes, re.M)))
    go = re.search(r"^go (\S+)", kubernetes, re.M)
    assert go, "not the go.mod of Kubernetes"
    published = f"v0.{VERSION.removeprefix('v1.')}"
    lines = ["module testbed", f"go {go.group(1)}", f"require {_MODULE} {VERSION}"]
    return "\n".join(lines + [f"replace {module} => {module} {published}" for module in staging]) + "\n"
