"""The cluster's certificates: own CAs, and one leaf per component with just the usages that it needs.

Three CAs, as kubeadm makes them, since a server believes every client that its CA has signed:

    ca              the cluster: API server, kubelet, users. kube-controller-manager signs CSRs with it.
    etcd-ca         etcd alone: no certificate of the cluster opens etcd's door
    front-proxy-ca  the API server towards aggregated API servers (their ``requestheader-client-ca-file``)

CAs and the service accounts' key are made once and stay, whichever node the control plane runs on. A leaf is made anew when it
expires soon, when its names no longer cover this run (another node), or when certificate and key do not belong together (the
writer died between the two files). https://kubernetes.io/docs/setup/best-practices/certificates/ lists what must be in them.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import oid

from hpk import errors, files

CA_DAYS = 3650
LEAF_DAYS = 365
#: A leaf with fewer days left is renewed at start, and by the daily look of a control plane that runs on.
RENEW_DAYS = 60
#: Certificates begin a little in the past: the clocks of a cluster's nodes differ.
BACKDATE = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class CA:
    name: str
    common_name: str


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One certificate: whose, by which CA, usable as server, client or both, for which names and addresses."""

    name: str
    ca: str
    common_name: str
    organizations: tuple[str, ...] = ()
    server: bool = False
    client: bool = False
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for a dry run."""
        subject = ", ".join([f"CN={self.common_name}", *(f"O={o}" for o in self.organizations)])
        usages = "+".join([word for word, on in (("server", self.server), ("client", self.client)) if on])
        alt = " ".join([*self.names, *self.addresses])
        return f"{self.name}: {subject}; signed by {self.ca}; {usages}" + (f"; for {alt}" if alt else "")


CAS = (
    CA("ca", "hpk-ca"),
    CA("etcd-ca", "hpk-etcd-ca"),
    CA("front-proxy-ca", "hpk-front-proxy-ca"),
)


def leaves(*, node_name: str, host_names: Sequence[str], address: str, service_ip: str, domain: str) -> tuple[Leaf, ...]:
    """Return the leaves of a cluster whose control plane runs on the node with these names and this address (pure)."""
    here = tuple(dict.fromkeys(["localhost", *host_names]))
    loopback = ("127.0.0.1",)
    addresses = tuple(dict.fromkeys([*loopback, address]))
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}")
    return (
        Leaf("etcd-server", "etcd-ca", "etcd", server=True, client=True, names=("localhost",), addresses=loopback),
        Leaf("apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", client=True),
        Leaf("apiserver", "ca", "kube-apiserver", server=True, names=(*service, *here), addresses=(service_ip, *addresses)),
        Leaf("apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", client=True),
        Leaf("front-proxy-client", "front-proxy-ca", "front-proxy-client", client=True),
        Leaf("kube-controller-manager", "ca", "system:kube-controller-manager", client=True),
        Leaf("kube-controller-manager-server", "ca", "kube-controller-manager", server=True, names=("localhost",), addresses=loopback),
        Leaf("scheduler", "ca", "system:kube-scheduler", client=True),
        Leaf("kubelet-client", "ca", f"system:node:{node_name}", ("system:nodes",), client=True),
        Leaf(
            "kubelet", "ca", f"system:node:{node_name}", ("system:nodes",), server=True,
            names=tuple(dict.fromkeys([node_name, "hpk-kubelet", *here])), addresses=addresses,
        ),
        Leaf("coredns", "ca", "system:coredns", client=True),
        Leaf(
            "coredns-server", "ca", "coredns", server=True,
            names=("localhost", f"kube-dns.kube-system.svc.{domain}"), addresses=loopback,
        ),
        Leaf("admin", "ca", "kubernetes-admin", ("system:masters",), client=True),
    )  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _public(key: object) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


class PKI:
    """The folder of certificates and keys: ``<name>.crt``, ``<name>.key``, ``sa.pub``; all of mode 0600."""

    def __init__(self, folder: str, *, now: datetime.datetime | None = None) -> None:
        self._folder = folder
        self._now = now or datetime.datetime.now(datetime.timezone.utc)
        self._cas: dict[str, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {}

    def path(self, file: str) -> str:
        return os.path.join(self._folder, file)

    def ensure(self, wanted: Sequence[Leaf]) -> list[str]:
        """Make what is missing, renew what no longer fits; return the names of the leaves that were made.

        Raises StateError when a CA is damaged or has expired: a new one would cut off everybody who trusts the old one, so
        that is the user's decision.
        """
        files.private_dir(self._folder)
        for ca in CAS:
            self._cas[ca.name] = self._load_ca(ca) or self._make_ca(ca)
        if not (os.path.exists(self.path("sa.key")) and os.path.exists(self.path("sa.pub"))):
            self._make_service_account_key()
        made = [leaf for leaf in wanted if not self._fits(leaf)]
        for leaf in made:
            self._make(leaf)
        return [leaf.name for leaf in made]

    def _read(self, file: str) -> bytes | None:
        try:
            with open(self.path(file), "rb") as handle:
                return handle.read()
        except FileNotFoundError:
            return None

    def _write_pair(self, name: str, key: bytes, cert: bytes) -> None:
        files.write_atomic(self.path(f"{name}.key"), key, sync=True)
        files.write_atomic(self.path(f"{name}.crt"), cert, sync=True)

    def _load_ca(self, ca: CA) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
        cert_pem, key_pem = self._read(f"{ca.name}.crt"), self._read(f"{ca.name}.key")
        if cert_pem is None:
            return None  # a key alone: the first start died before anything was signed with it
        path = self.path(f"{ca.name}.crt")
        remedy = f"remove {self._folder} to get a new CA; kubeconfigs that were copied elsewhere then stop working"
        try:
            cert = x509.load_pem_x509_certificate(cert_pem)
            key = serialization.load_pem_private_key(key_pem or b"", None)
            matches = isinstance(key, ec.EllipticCurvePrivateKey) and _public(key.public_key()) == _public(cert.public_key())
        except ValueError:
            matches = False
        if not matches:
            raise errors.StateError(f"{path} and its key are damaged or do not belong together", hint=remedy)
        if cert.not_valid_after_utc <= self._now + datetime.timedelta(days=RENEW_DAYS):
            raise errors.StateError(f"{path} expires on {cert.not_valid_after_utc:%Y-%m-%d}", hint=remedy)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cert, key

    def _make_ca(self, ca: CA) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, ca.common_name)])
        cert = (
            self._builder(name, name, key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._write_pair(ca.name, _pem(key), cert.public_bytes(serialization.Encoding.PEM))
        return cert, key

    def _make_service_account_key(self) -> None:
        # RSA, since RS256 is the one algorithm that every OpenID Connect relying party must know
        key = rsa.generate_private_key(65537, 2048)
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        files.write_atomic(self.path("sa.key"), _pem(key), sync=True)
        files.write_atomic(self.path("sa.pub"), public, sync=True)

    def _builder(self, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - BACKDATE)
            .not_valid_after(self._now + datetime.timedelta(days=days))
        )

    def _make(self, leaf: Leaf) -> None:
        ca_cert, ca_key = self._cas[leaf.ca]
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(_subject(leaf), ca_cert.subject, key.public_key(), LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_usages(leaf)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        names = _alternative_names(leaf)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.sign(ca_key, hashes.SHA256())
        self._write_pair(leaf.name, _pem(key), cert.public_bytes(serialization.Encoding.PEM))

    def _fits(self, leaf: Leaf) -> bool:
        cert_pem, key_pem = self._read(f"{leaf.name}.crt"), self._read(f"{leaf.name}.key")
        if cert_pem is None or key_pem is None:
            return False
        try:
            cert = x509.load_pem_x509_certificate(cert_pem)
            key = serialization.load_pem_private_key(key_pem, None)
            cert.verify_directly_issued_by(self._cas[leaf.ca][0])
            usages = list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        except Exception:  # whatever is wrong with it, a new one is made
            return False
        return (
            _public(key.public_key()) == _public(cert.public_key())
            and cert.subject == _subject(leaf)
            and usages == _usages(leaf)
            and set(_alternative_names(leaf)) <= _covered(cert)
            and cert.not_valid_after_utc > self._now + datetime.timedelta(days=RENEW_DAYS)
        )


def _subject(leaf: Leaf) -> x509.Name:
    organizations = [x509.NameAttribute(oid.NameOID.ORGANIZATION_NAME, name) for name in leaf.organizations]
    return x509.Name([*organizations, x509.NameAttribute(oid.NameOID.COMMON_NAME, leaf.common_name)])


def _usages(leaf: Leaf) -> list[x509.ObjectIdentifier]:
    usages = []
    if leaf.server:
        usages.append(oid.ExtendedKeyUsageOID.SERVER_AUTH)
    if leaf.client:
        usages.append(oid.ExtendedKeyUsageOID.CLIENT_AUTH)
    return usages


def _alternative_names(leaf: Leaf) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in leaf.names]
    return names + [x509.IPAddress(ipaddress.ip_address(address)) for address in leaf.addresses]


def _covered(cert: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=ca, crl_sign=ca, key_encipherment=False, content_commitment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
