"""What the bed's administrator offers to all users: the hpk and kubectl commands, /etc/hpk/hpk.yaml, the login environment."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys

from tests.testbed import commands, layout

_VENV = f"{layout.CACHE}/venv"
_HPK = f"""\
#!{_VENV}/bin/python
import sys

from hpk.cli import main

sys.exit(main())
"""
_SITE_CONFIG = f"""\
# Settings of the site; users may override them in ~/.hpk/hpk.yaml.
images:
  insecure: ["{layout.REGISTRY}", "{layout.PRIVATE_REGISTRY}"]
  mirrors:
    docker.io: {layout.REGISTRY}/docker.io
    registry.k8s.io: {layout.REGISTRY}/registry.k8s.io
    quay.io: {layout.REGISTRY}/quay.io
"""


def python_environment() -> None:
    """Make the virtual environment that runs hpk on the hosts; made anew when the dependencies in pyproject.toml change.

    It is made from the system's Python, which every user may run, and finds hpk itself in the tree.
    """
    import tomllib  # from Python 3.11 on; only this needs it

    with open(f"{layout.TREE}/pyproject.toml", "rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    wanted = hashlib.sha256("\n".join(sorted(dependencies)).encode()).hexdigest()
    marker = f"{_VENV}/.dependencies"
    if commands.read(marker) == wanted:
        return
    commands.say("making the Python environment of the hosts")
    commands.run(["/usr/bin/python3", "-m", "venv", "--clear", _VENV], timeout=120)
    commands.run([f"{_VENV}/bin/python", "-m", "pip", "install", "--quiet", *dependencies], timeout=600)
    packages = commands.run([f"{_VENV}/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    commands.write(f"{packages}/hpk-tree.pth", f"{layout.SITE_TREE}\n")
    commands.write(marker, wanted)


def environment(user: str) -> dict[str, str]:
    """Environment of a login of ``user``."""
    variables = {
        "HOME": f"/home/{user}",
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "PATH": f"/home/{user}/.local/bin:{layout.SITE_BIN}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }
    if "TERM" in os.environ and sys.stdin.isatty():
        variables["TERM"] = os.environ["TERM"]
    return variables | _site_variables()


def _site_variables() -> dict[str, str]:
    found = os.path.exists(layout.CONTROL_PLANE_IMAGE)
    return {"HPK_CONTROL_PLANE_IMAGE": layout.CONTROL_PLANE_IMAGE} if found else {}


def configure(bed: layout.Layout) -> None:
    """Write the site's commands and files of the bed's hosts."""
    commands.write(f"{bed.state}/bin/hpk", _HPK, 0o755)
    kubectl = f"{bed.state}/bin/kubectl"
    if not os.path.islink(kubectl):
        os.symlink(f"{layout.BINARIES}/kubectl", kubectl)
    commands.write(f"{bed.etc}/hpk/hpk.yaml", _SITE_CONFIG)
    image = shlex.quote(layout.CONTROL_PLANE_IMAGE)
    profile = [
        f'PATH="$HOME/.local/bin:{layout.SITE_BIN}:/usr/local/bin:/usr/bin:/bin"',
        f"if [ -e {image} ]; then export HPK_CONTROL_PLANE_IMAGE={image}; fi",
    ]
    commands.write(f"{bed.etc}/profile.d/hpk-testbed.sh", "\n".join(profile) + "\n")
