"""A real etcd and kube-apiserver (kube-controller-manager on demand) for the component tests, without Slurm or containers.

The binaries come from $HPK_CACHE/bin (default /var/cache/hpk/bin). Everything else is the tests' own: certificates, free ports on
loopback, a temporary folder, and processes that end with the module.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import datetime
import ipaddress
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BINARIES = os.path.join(os.environ.get("HPK_CACHE", "/var/cache/hpk"), "bin")
_libc = ctypes.CDLL(None)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Authority:
    """A small CA."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "component-tests")])
        self._certificate = self._sign(self._name, self._key, authority=True, usages=(), names=())
        self.certificate = self._write("ca.crt", self._certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool, usages: Any, names: Any) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> str:
        path = os.path.join(self.folder, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        return path

    def issue(self, file: str, common_name: str, *organizations: str, hosts: tuple[str, ...] = ()) -> tuple[str, str]:
        """Return the paths of a certificate and its key, good for both ends of a connection."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
            + [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        )
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        usages = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = self._sign(name, key, authority=False, usages=usages, names=names)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return (
            self._write(f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{file}.key", private),
        )


class APIServer:
    """etcd and kube-apiserver on loopback. ``stop_apiserver()`` and ``start_apiserver()`` make an outage."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.authority = Authority(os.path.join(folder, "pki"))
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd_port, self._peer_port = free_port(), free_port()
        self._server = self.authority.issue("server", "kube-apiserver", hosts=("127.0.0.1", "localhost"))
        self.kubelet_client = self.authority.issue("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        self._service_accounts = self.authority.issue("service-accounts", "service-accounts")
        self.admin = self.kubeconfig("kubernetes-admin", "system:masters")

    def _spawn(self, name: str, *argv: str) -> None:
        def die_with_parent() -> None:
            _libc.prctl(1, signal.SIGKILL)

        with open(os.path.join(self.folder, f"{name}.log"), "ab") as log:
            self._processes[name] = subprocess.Popen(
                [os.path.join(BINARIES, name), *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
            )

    def log(self, name: str) -> str:
        with open(os.path.join(self.folder, f"{name}.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self._processes.pop(name)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_etcd(self) -> None:
        certificate, key = self._server
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._spawn(
            "etcd",
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls=https://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=https://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={certificate}",
            f"--key-file={key}",
            "--client-cert-auth",
            f"--trusted-ca-file={self.authority.certificate}",
            "--unsafe-no-fsync",
        )

    def start_apiserver(self, *, wait: bool = True) -> None:
        """Call it in the main thread: the kernel ends the process with the thread that started it."""
        certificate, key = self._server
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=https://127.0.0.1:{self._etcd_port}",
            f"--etcd-cafile={self.authority.certificate}",
            f"--etcd-certfile={certificate}",
            f"--etcd-keyfile={key}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.certificate}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            f"--kubelet-client-certificate={self.kubelet_client[0]}",
            f"--kubelet-client-key={self.kubelet_client[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-account-key-file={self._service_accounts[1]}",
            f"--service-account-signing-key-file={self._service_accounts[1]}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
        )
        if wait:
            self.wait_ready()

    def start_controller_manager(self) -> None:
        if "kube-controller-manager" in self._processes:
            return
        kubeconfig = self.kubeconfig("system:kube-controller-manager")
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self._service_accounts[1]}",
            f"--root-ca-file={self.authority.certificate}",
            "--leader-elect=false",
        )

    def wait_ready(self, seconds: float = 60) -> None:
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.load_cert_chain(*self.kubelet_client)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (process := self._processes["kube-apiserver"]).poll() is not None:
                raise RuntimeError(f"kube-apiserver ended with {process.returncode}: {self.log('kube-apiserver')[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", context=context, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass  # not yet
            time.sleep(0.1)
        raise RuntimeError(f"kube-apiserver is not ready after {seconds} s: {self.log('kube-apiserver')[-2000:]}")

    def kubeconfig(self, user: str, *groups: str, token: str | None = None) -> str:
        """Return the path of a kubeconfig (JSON is YAML) for ``user``."""
        identity: dict[str, Any] = {"token": token} if token else {}
        file = f"user-{secrets.token_hex(4)}"
        if not token:
            certificate, key = self.authority.issue(file, user, *groups)
            identity = {"client-certificate-data": _encoded(certificate), "client-key-data": _encoded(key)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": self.url, "certificate-authority-data": _encoded(self.authority.certificate)}}
            ],
            "users": [{"name": "u", "user": identity}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = os.path.join(self.folder, f"{file}.kubeconfig")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as out:
            json.dump(config, out)
        return path

    def kubectl(self, *words: str, input: str | None = None, kubeconfig: str | None = None) -> subprocess.CompletedProcess[str]:
        argv = [os.path.join(BINARIES, "kubectl"), f"--kubeconfig={kubeconfig or self.admin}", *words]
        env = {**os.environ, "HOME": self.folder}
        return subprocess.run(argv, input=input, capture_output=True, text=True, timeout=60, env=env)

    def end(self) -> None:
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            if name in self._processes:
                self.stop(name)


def _encoded(path: str) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


def pod(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """A minimal Pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "busybox"}], "automountServiceAccountToken": False, **spec},
    }


async def until(check: Any, seconds: float = 10.0) -> Any:
    """Await ``check()`` (plain or async) until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found or time.monotonic() > deadline:
            assert found, f"did not become true within {seconds} s"
            return found
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[APIServer]:
    """One for each module: nodes and Pods that another left behind would be scheduled, or in the way."""
    missing = [name for name in ("etcd", "kube-apiserver", "kubectl") if not os.access(os.path.join(BINARIES, name), os.X_OK)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not in {BINARIES}: build the control-plane image first")
    server = APIServer(str(tmp_path_factory.mktemp("apiserver")))
    try:
        server.start_etcd()
        server.start_apiserver()
        yield server
    finally:
        server.end()


@pytest.fixture
def namespace(apiserver: APIServer) -> Iterator[str]:
    """A fresh namespace with its default service account (there is no controller that would make it)."""
    name = f"test-{secrets.token_hex(4)}"
    done = apiserver.kubectl("create", "namespace", name)
    assert done.returncode == 0, done.stderr
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    apiserver.kubectl("apply", "-f", "-", input=json.dumps(account))
    yield name
    apiserver.kubectl("delete", "pods", "--all", "-n", name, "--force", "--grace-period=0", "--wait=false")
