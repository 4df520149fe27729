"""The real etcd, API server, controller manager, CoreDNS and our scheduler, started by our runner; no Slurm, no container.

Proven here: they come up and work together, the doors are shut to those without a key, a dead part is started again, and a
second start, with the names and the address of another node, goes on with the same CA and objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import socket
import ssl
import stat
import struct
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from cryptography import x509

from hpk import config as configuration
from hpk import paths, records
from hpk.bootstrap import component, components, main, objects, pki, runner, statedir
from hpk.kube import client as kube_client
from hpk.kube import errors as kube_errors

BINARIES = os.environ.get("HPK_TEST_BINARIES", "/var/cache/hpk/bin")
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "coredns")
pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(
        not all(os.access(os.path.join(BINARIES, name), os.X_OK) for name in NEEDED), reason=f"no control-plane binaries in {BINARIES}"
    ),
]


def a_run(folder: pathlib.Path, **changes: object) -> component.Run:
    """The facts of a run below ``folder``, all on loopback; no kubelet, which needs Slurm."""
    where = paths.Paths(str(folder))
    folder.mkdir(exist_ok=True)
    (folder / "hpk.yaml").write_text(f"controlPlane: {{binaries: {BINARIES}, address: 127.0.0.1}}\n")
    run = main.facts(where, configuration.load(where, {"HPK_SITE_CONFIG": "/dev/null"}))
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(
    run: component.Run, *, without: tuple[str, ...] = ("kubelet",)
) -> AsyncIterator[tuple[runner.Runner, kube_client.Client]]:
    statedir.prepare(run.paths)
    main.write_files(run)
    specs = [spec for spec in components.build(run) if spec.name not in without]
    it = runner.Runner(
        specs,
        environment=component.environment(run, os.environ),
        folder=run.paths.root,
        log_path=run.paths.log,
        changed=lambda: None,
    )
    it.start()
    try:
        await it.wait_ready("kube-apiserver")
        async with kube_client.Client.from_kubeconfig(run.paths.component_kubeconfig("admin"), user_agent="test") as client:
            await objects.apply(client, run.config.cluster.service_cidr)
            for name in it.states:
                await it.wait_ready(name)
            yield it, client
    finally:
        await it.stop()


async def eventually(get: object, seconds: float = 20.0) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await get()  # type: ignore[operator,no-any-return]
        except kube_errors.NotFound:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


def query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    return struct.pack(">H", len(message)) + message


def resolve(run: component.Run, name: str, *, cert: str) -> str | None:
    """Ask CoreDNS for an A record over TLS; None for an answer without one."""
    context = ssl.create_default_context(cafile=run.pki("ca.crt"))
    if cert:
        context.load_cert_chain(run.pki(f"{cert}.crt"), run.pki(f"{cert}.key"))
    with (
        socket.create_connection(("127.0.0.1", run.ports["dns"]), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        sock.sendall(query(name))
        size = struct.unpack(">H", sock.recv(2))[0]
        answer = sock.recv(size)
    return socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] == 1 else None


async def test_life(tmp_path: pathlib.Path) -> None:
    run = a_run(tmp_path / "state")
    async with running(run) as (it, client):
        began = time.monotonic()
        await eventually(lambda: client.get("/api/v1/namespaces/default/serviceaccounts/default"))
        assert time.monotonic() - began < 10
        service = await client.get("/api/v1/namespaces/kube-system/services/kube-dns")
        assert service["spec"]["clusterIP"] == "10.96.0.10"

        # names of the cluster, for those with a certificate of it only
        found = await asyncio.to_thread(resolve, run, "kube-dns.kube-system.svc.cluster.local", cert="admin")
        assert found == "10.96.0.10"
        with pytest.raises((ssl.SSLError, ConnectionError, struct.error)):
            await asyncio.to_thread(resolve, run, "kube-dns.kube-system.svc.cluster.local", cert="")

        # another user of this node, and a user of the cluster, stand before etcd's door
        for cert in ("", "admin"):
            context = ssl.create_default_context(cafile=run.pki("etcd-ca.crt"))
            if cert:
                context.load_cert_chain(run.pki(f"{cert}.crt"), run.pki(f"{cert}.key"))
            async with aiohttp.ClientSession() as session:
                for port in ("etcd", "etcd-peer"):
                    with pytest.raises(aiohttp.ClientError):
                        await session.get(f"https://127.0.0.1:{run.ports[port]}/version", ssl=context)
        # and nobody without a name gets more than the API server's health
        context = ssl.create_default_context(cafile=run.pki("ca.crt"))
        async with aiohttp.ClientSession() as session, session.get(f"{run.api_server}/api/v1/secrets", ssl=context) as answer:
            assert answer.status in (401, 403)

        for folder, _, names in os.walk(run.paths.root):
            assert stat.S_IMODE(os.stat(folder).st_mode) & 0o077 == 0, folder
            for name in names:
                if name.endswith((".key", ".kubeconfig", ".log", ".json")):
                    assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600, name

        # every part may die
        await client.create("/api/v1/namespaces/default/configmaps", {"metadata": {"name": "kept"}, "data": {"a": "b"}})
        before = {name: state.pid for name, state in it.states.items()}
        for pid in before.values():
            os.kill(pid, 9)
        deadline = time.monotonic() + 60
        while not all(state.phase == "ready" and state.pid != before[name] for name, state in it.states.items()):
            assert time.monotonic() < deadline, it.states
            await asyncio.sleep(0.1)
        assert {state.restarts for state in it.states.values()} == {1}
        assert (await client.get("/api/v1/namespaces/default/configmaps/kept"))["data"] == {"a": "b"}
        # the controller manager works again
        await client.create("/api/v1/namespaces", {"metadata": {"name": "later"}})
        await eventually(lambda: client.get("/api/v1/namespaces/later/serviceaccounts/default"))
        pids = [state.pid for state in it.states.values()]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)

    # the next run is on another node: other names, other ports
    authority = (tmp_path / "state" / "pki" / "ca.crt").read_bytes()
    ports = {name: port for name, port in zip(run.ports, list(run.ports.values())[1:] + list(run.ports.values())[:1], strict=True)}
    moved = a_run(tmp_path / "state", host="c2", host_names=("c2",), ports=ports)
    async with running(moved) as (it, client):
        assert (await client.get("/api/v1/namespaces/default/configmaps/kept"))["data"] == {"a": "b"}
        assert (tmp_path / "state" / "pki" / "ca.crt").read_bytes() == authority
        context = ssl.create_default_context(cafile=moved.pki("ca.crt"))
        async with aiohttp.ClientSession() as session:
            connector = f"https://127.0.0.1:{moved.ports['apiserver']}/livez"
            async with session.get(connector, ssl=context, server_hostname="c2") as answer:
                assert answer.status in (200, 401)


async def test_ports_are_kept(tmp_path: pathlib.Path) -> None:
    run = a_run(tmp_path / "state")
    statedir.prepare(run.paths)
    main.write_files(run)
    assert a_run(tmp_path / "state").ports == run.ports


async def test_controllers_that_make_no_sense_are_off_and_known(tmp_path: pathlib.Path) -> None:
    """A name that kube-controller-manager does not know would stop it with an error; a CSR is signed by the cluster's CA."""
    run = a_run(tmp_path / "state")
    async with running(run) as (_, client):
        import base64

        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "jane")])
        pem = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
        await client.create(
            path,
            {
                "metadata": {"name": "jane"},
                "spec": {
                    "request": base64.b64encode(pem).decode(),
                    "signerName": "kubernetes.io/kube-apiserver-client",
                    "usages": ["client auth"],
                },
            },
        )
        approved = await client.get(f"{path}/jane")
        approved["status"] = {"conditions": [{"type": "Approved", "status": "True", "reason": "test", "message": "test"}]}
        await client.replace(f"{path}/jane/approval", approved)
        deadline = time.monotonic() + 20
        while not (csr := await client.get(f"{path}/jane"))["status"].get("certificate"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        cert = x509.load_pem_x509_certificate(base64.b64decode(csr["status"]["certificate"]))
        cert.verify_directly_issued_by(x509.load_pem_x509_certificate(pathlib.Path(run.pki("ca.crt")).read_bytes()))


async def test_lease_of_a_scheduler_that_died_with_its_node_is_freed(tmp_path: pathlib.Path) -> None:
    run = a_run(tmp_path / "state")
    async with running(run, without=("kubelet", "scheduler", "coredns", "kube-controller-manager")) as (_, client):
        began = time.time()
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        spec = {"holderIdentity": "c9_1", "leaseDurationSeconds": 15, "renewTime": records.now(began - 10)[:-1] + ".000000Z"}
        await client.create(leases, {"metadata": {"name": "kube-scheduler"}, "spec": spec})
        await objects.release_lease(client, began - 20)
        assert (await client.get(f"{leases}/kube-scheduler"))["spec"]["holderIdentity"] == "c9_1"
        await objects.release_lease(client, began)
        assert not (await client.get(f"{leases}/kube-scheduler"))["spec"].get("holderIdentity")


def served(run: component.Run, port: str, authority: str, cert: str) -> int:
    """Serial number of the certificate that answers at a port."""
    context = ssl.create_default_context(cafile=run.pki(authority))
    context.load_cert_chain(run.pki(f"{cert}.crt"), run.pki(f"{cert}.key"))
    with (
        socket.create_connection(("127.0.0.1", run.ports[port]), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        return x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b"").serial_number


def all_new(run: component.Run, ports: tuple[tuple[str, str, str], ...], before: list[int]) -> bool:
    """Whether every port answers with another certificate than before; CoreDNS says that it is ready a moment before it listens."""
    try:
        return not any(served(run, *port) in before for port in ports)
    except ConnectionRefusedError:
        return False


async def test_certificates_are_renewed_under_way(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "state")
    ports = (("apiserver", "ca.crt", "admin"), ("etcd", "etcd-ca.crt", "apiserver-etcd-client"), ("dns", "ca.crt", "admin"))
    async with running(run) as (it, client):
        before = [await asyncio.to_thread(served, run, *port) for port in ports]
        pids = {name: state.pid for name, state in it.states.items()}
        with monkeypatch.context() as patch:
            patch.setattr(pki, "RENEW_DAYS", pki.LEAF_DAYS + 1)  # the day has come
            made = pki.PKI(run.paths.pki).ensure(main.certificates(run))
        assert set(made) == {leaf.name for leaf in main.certificates(run)}
        main.write_files(run)
        await it.restart(made)
        deadline = time.monotonic() + 90  # the API server and etcd see the new files by themselves
        while not await asyncio.to_thread(all_new, run, ports, before):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)
        changed = {name for name, state in it.states.items() if state.pid != pids[name]}
        assert changed == {"kube-controller-manager", "coredns", "scheduler"}
        await client.create("/api/v1/namespaces", {"metadata": {"name": "later"}})
        await eventually(lambda: client.get("/api/v1/namespaces/later/serviceaccounts/default"))
