"""The test images, made from Debian packages and agnhost, kept in the cache as OCI layouts.

They look like their namesakes on public registries (names, entrypoint, command, environment, user), so that manifests written for
those run unchanged.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.testbed import agnhost, commands, layout, oci

_FOLDER = f"{layout.CACHE}/images"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
_GROUP = b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"

#: References below registry:5000 and the image they are; see ``site`` for the mirrors that make docker.io/library/busybox of them.
REFERENCES = {
    "docker.io/library/busybox:latest": "busybox",
    "docker.io/library/busybox:1.35": "busybox",
    "registry.k8s.io/e2e-test-images/agnhost:2.63.0": "agnhost",
    "docker.io/library/debian:latest": "debian",
    "docker.io/library/debian:12": "debian",
    "docker.io/library/python:latest": "python",
    "docker.io/library/python:3": "python",
    "docker.io/library/python:3.11": "python",
    "docker.io/library/nginx:latest": "nginx",
    "docker.io/library/nginx:switching": "nginx-switching",
    "docker.io/nginxinc/nginx-unprivileged:latest": "nginx-unprivileged",
    # without a public registry's name, as a site's own images
    "busybox:latest": "busybox",
    "agnhost:latest": "agnhost",
    "python:latest": "python",
    "nginx:latest": "nginx",
}


def ensure() -> dict[str, str]:
    """Make the images that are missing or whose recipe has changed; name to folder of the OCI layout."""
    with commands.locked(f"{_FOLDER}/.lock"):
        return {name: _made(name, recipe) for name, recipe in _RECIPES.items()}


def derive(base: str, files: Sequence[oci.File], config: Mapping[str, Any], folder: str) -> str:
    """Make an OCI layout in ``folder``: a test image with one more layer, and ``config`` over the base's. ``base`` is a recipe's name."""
    made = ensure()[base]
    manifest = oci.manifest(made)
    layers = [oci.blob_path(made, descriptor) for descriptor in manifest["layers"]]
    if files:
        os.makedirs(folder, exist_ok=True)
        layers.append(oci.layer(f"{folder}/layer.tar.gz", files))
    base_config = oci.read_json(oci.blob_path(made, manifest["config"]))["config"]
    return oci.write(f"{folder}/oci", oci.Image(layers, {**base_config, **config}))


def version() -> str:
    """Changes when anything about the recipes may have changed. What is slow, Debian's packages and agnhost, is kept apart from this."""
    return hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()


def _made(name: str, recipe: Callable[[str], oci.Image]) -> str:
    folder = f"{_FOLDER}/{name}"
    if commands.read(f"{folder}/recipe") != version():
        commands.say(f"making the image {name}")
        os.makedirs(folder, exist_ok=True)
        oci.write(f"{folder}/oci", recipe(folder))
        commands.write(f"{folder}/recipe", version())
    return f"{folder}/oci"


def _busybox_files() -> list[oci.File]:
    folders = [("bin", 0o755), ("etc", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755)]
    folders += [("usr/sbin", 0o755), ("sbin", 0o755), ("var", 0o755), ("var/www", 0o755), ("var/spool", 0o755)]
    with open("/bin/busybox", "rb") as file:
        program = file.read()
    names = commands.run(["/bin/busybox", "--list"]).stdout.split()
    return [
        *(oci.File(path, mode=mode, folder=True) for path, mode in folders),
        oci.File("bin/busybox", program, 0o755),
        *(oci.File(f"bin/{name}", link="busybox") for name in names if name != "busybox"),
        oci.File("usr/bin/env", link="../../bin/busybox"),
        oci.File("etc/passwd", _PASSWD),
        oci.File("etc/group", _GROUP),
    ]


def _busybox(folder: str) -> oci.Image:
    return oci.Image([oci.layer(f"{folder}/layer.tar.gz", _busybox_files())], {"Cmd": ["sh"], "Env": [_PATH]})


def _agnhost(folder: str) -> oci.Image:
    """On busybox where upstream has Alpine. User 1000 and its group are those that upstream's test of supplemental groups expects."""
    with open(agnhost.ensure(), "rb") as file:
        program = file.read()
    user = b"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
    group = b"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
    files = [
        oci.File("agnhost", program, 0o755),
        oci.File("agnhost-2", link="agnhost"),
        oci.File("uploads", mode=0o755, folder=True),
        oci.File("etc/passwd", _PASSWD + user),
        oci.File("etc/group", _GROUP + group),
    ]
    layers = [oci.layer(f"{folder}/base.tar.gz", _busybox_files()), oci.layer(f"{folder}/layer.tar.gz", files)]
    ports: dict[str, Any] = {f"{port}/tcp": {} for port in (80, 5000, 8080, 8081, 9376)}
    return oci.Image(layers, {"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": [_PATH], "ExposedPorts": ports})


def _debian(folder: str) -> oci.Image:
    return oci.Image([_debian_layer()], {"Cmd": ["bash"], "Env": [_PATH]})


def _python(folder: str) -> oci.Image:
    links = [oci.File(f"usr/local/bin/{name}", link="/usr/bin/python3") for name in ("python", "python3")]
    layers = [_debian_layer(), oci.layer(f"{folder}/layer.tar.gz", links)]
    return oci.Image(layers, {"Cmd": ["python3"], "Env": [_PATH, "LANG=C.UTF-8", "PYTHON_VERSION=3.11"]})


_NGINX_CONF = """\
{user}worker_processes 1;
error_log /dev/stderr notice;
pid {pid};
events {{ worker_connections 1024; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    {temporary}
    server {{
        listen {port};
        root /usr/share/nginx/html;
        index index.html;
    }}
}}
"""
_NGINX_PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n"
_NGINX_ENTRYPOINT = b'#!/bin/sh\necho "$0: ready to start $1"\nexec "$@"\n'


def _nginx_layers(folder: str, conf: str) -> list[str]:
    files = [
        oci.File("docker-entrypoint.sh", _NGINX_ENTRYPOINT, 0o755),
        oci.File("etc/nginx/nginx.conf", conf.encode()),
        oci.File("usr/share/nginx/html", mode=0o755, folder=True),
        oci.File("usr/share/nginx/html/index.html", _NGINX_PAGE),
    ]
    return [_debian_layer(), oci.layer(f"{folder}/layer.tar.gz", files)]


def _nginx(folder: str) -> oci.Image:
    """Starts as root on port 80. Its workers stay root: where only one id is mapped there is no other user that they could become."""
    return _nginx_as(folder, "root root")


def _nginx_switching(folder: str) -> oci.Image:
    """Its workers become www-data, as those of the public image become nginx: possible only where more than one id is mapped."""
    return _nginx_as(folder, "www-data")


def _nginx_as(folder: str, user: str) -> oci.Image:
    layers = _nginx_layers(folder, _NGINX_CONF.format(user=f"user {user};\n", pid="/run/nginx.pid", temporary="", port=80))
    config = {
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "Env": [_PATH],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    return oci.Image(layers, config)


def _nginx_unprivileged(folder: str) -> oci.Image:
    """For any user, on port 8080."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path /tmp/{kind}_temp;" for kind in kinds)
    layers = _nginx_layers(folder, _NGINX_CONF.format(user="", pid="/tmp/nginx.pid", temporary=temporary, port=8080))
    config = {
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "Env": [_PATH],
        "User": "101",
        "ExposedPorts": {"8080/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    return oci.Image(layers, config)


_RECIPES: dict[str, Callable[[str], oci.Image]] = {
    "busybox": _busybox,
    "debian": _debian,
    "python": _python,
    "nginx": _nginx,
    "nginx-switching": _nginx_switching,
    "nginx-unprivileged": _nginx_unprivileged,
    "agnhost": _agnhost,
}


def _debian_layer() -> str:
    """The one layer of Debian below all images of it, small but with what each of them is for, from the machine's own apt sources."""
    packages = ("python3", "nginx-light")
    kept = f"{layout.CACHE}/layers/debian-{'-'.join(packages)}.tar.gz"
    if not os.path.exists(kept):
        commands.say("making the layer of Debian")
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        left_out = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in left_out]
        mmdebstrap = ["mmdebstrap", "--mode=root", "--variant=essential", "--format=tar", "--skip=output/dev", *options]
        tar = kept.removesuffix(".gz")
        commands.run(["nice", *mmdebstrap, f"--include={','.join(packages)}", _codename(), tar], timeout=1800)
        commands.run(["nice", "gzip", "-n", "-f", tar], timeout=600)
    return kept


def _codename() -> str:
    for line in commands.read("/etc/os-release").splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise commands.TestbedError("/etc/os-release names no VERSION_CODENAME: the test images are made from Debian's packages")
