"""The registry of the bed, on the login host: plain HTTP on port 5000, and again on port 5001 for those who log in.

Every host knows it by the name ``registry``. Both ports serve the same images; they are pushed once per bed.
"""

from __future__ import annotations

import concurrent.futures

from tests.testbed import commands, host, images, layout

#: Who may pull from registry:5001, for tests of image pull secrets.
PULLER, PASSWORD = "puller", "testbed"
_HTPASSWD = f"{PULLER}:$2y$05$abcdefghijklmnopqrstuuaUQoGoyjmuuXWQwBTiSaR.DpPZodIem\n"
_ETC = "docker-registry"


def _config(port: int, extra: str = "") -> str:
    return f"""\
version: 0.1
log:
  accesslog:
    disabled: true
  level: warn
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
  delete:
    enabled: true
http:
  addr: :{port}
{extra}"""


def configure(bed: layout.Layout) -> None:
    """Write the registry's files below the hosts' /etc."""
    etc = f"{bed.etc}/{_ETC}"
    commands.write(f"{etc}/open.yml", _config(5000))
    auth = f"auth:\n  htpasswd:\n    realm: registry\n    path: /etc/{_ETC}/htpasswd\n"
    commands.write(f"{etc}/private.yml", _config(5001, auth))
    commands.write(f"{etc}/htpasswd", _HTPASSWD)


def start(login: host.Host) -> None:
    """Start both registries and push the test images that this bed does not have yet."""
    for name in ("open", "private"):
        detach = ["sh", "-c", f'exec setsid --fork "$@" >/var/log/slurm/registry-{name}.log 2>&1', "sh"]
        become = ["setpriv", "--reuid=docker-registry", "--regid=docker-registry", "--init-groups"]
        login.run([*detach, *become, "docker-registry", "serve", f"/etc/{_ETC}/{name}.yml"])
    commands.wait_until("answer of the registries", lambda: _listening(login) >= {"5000", "5001"}, 20)
    marker = f"{login.disk}/registry.images"
    if commands.read(marker) != images.version():
        folders = images.ensure()
        # one tag of each image first: the other tags then find its layers there
        first = {name: reference for reference, name in reversed(images.REFERENCES.items())}
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda item: push(login, folders[item[0]], item[1]), first.items()))
            rest = [(name, reference) for reference, name in images.REFERENCES.items() if reference != first[name]]
            list(pool.map(lambda item: push(login, folders[item[0]], item[1]), rest))
        commands.write(marker, images.version())


def _listening(login: host.Host) -> set[str]:
    """TCP ports on which the host listens."""
    lines = login.run(["ss", "-Hltn"]).stdout.splitlines()
    return {line.split()[3].rpartition(":")[2] for line in lines}


def push(login: host.Host, folder: str, reference: str) -> None:
    """Push the OCI layout in ``folder`` as registry:5000/``reference``."""
    target = f"docker://{layout.REGISTRY}/{reference}"
    options = ["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
    login.run(["skopeo", *options, f"oci:{folder}", target], timeout=300)
