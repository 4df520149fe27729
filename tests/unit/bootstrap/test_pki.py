"""The certificates: what they are good for, what they are not good for, and when they are made anew."""

from __future__ import annotations

import datetime
import os
import pathlib
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import oid, verification

from hpk import errors
from hpk.bootstrap import pki

NOW = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.timezone.utc)
SERVER, CLIENT = oid.ExtendedKeyUsageOID.SERVER_AUTH, oid.ExtendedKeyUsageOID.CLIENT_AUTH


def wanted(host: str = "c1", address: str = "10.0.0.1") -> tuple[pki.Leaf, ...]:
    return pki.leaves(
        node_name="hpk", host_names=[f"{host}.site.example", host], address=address, service_ip="10.96.0.1", domain="cluster.local"
    )


def read(folder: str, name: str) -> bytes:
    return pathlib.Path(folder, name).read_bytes()


def load(folder: str, name: str) -> x509.Certificate:
    with open(os.path.join(folder, f"{name}.crt"), "rb") as file:
        return x509.load_pem_x509_certificate(file.read())


def alternative(cert: x509.Certificate) -> set[str]:
    return {str(name.value) for name in cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("pki") / "pki")
    pki.PKI(path, now=NOW).ensure(wanted())
    return path


@pytest.mark.parametrize(
    ("name", "usages", "ca", "subject"),
    [
        ("etcd-server", [SERVER, CLIENT], "etcd-ca", "CN=etcd"),
        ("apiserver-etcd-client", [CLIENT], "etcd-ca", "CN=kube-apiserver-etcd-client"),
        ("apiserver", [SERVER], "ca", "CN=kube-apiserver"),
        ("apiserver-kubelet-client", [CLIENT], "ca", "CN=kube-apiserver-kubelet-client"),
        ("front-proxy-client", [CLIENT], "front-proxy-ca", "CN=front-proxy-client"),
        ("kube-controller-manager", [CLIENT], "ca", "CN=system:kube-controller-manager"),
        ("scheduler", [CLIENT], "ca", "CN=system:kube-scheduler"),
        ("kubelet-client", [CLIENT], "ca", "CN=system:node:hpk,O=system:nodes"),
        ("kubelet", [SERVER], "ca", "CN=system:node:hpk,O=system:nodes"),
        ("coredns", [CLIENT], "ca", "CN=system:coredns"),
        ("admin", [CLIENT], "ca", "CN=kubernetes-admin,O=system:masters"),
    ],
)
def test_leaf(folder: str, name: str, usages: list[x509.ObjectIdentifier], ca: str, subject: str) -> None:
    cert = load(folder, name)
    assert list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    assert cert.subject.rfc4514_string() == subject
    cert.verify_directly_issued_by(load(folder, ca))
    assert cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert not cert.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_every_leaf_satisfies_a_strict_verifier(folder: str) -> None:
    for leaf in wanted():
        store = verification.Store([load(folder, leaf.ca)])
        builder = verification.PolicyBuilder().store(store).time(NOW)
        cert = load(folder, leaf.name)
        for name in leaf.names:
            builder.build_server_verifier(x509.DNSName(name)).verify(cert, [])
        assert leaf.server == bool(leaf.names)


def test_api_server_is_known_by_all_its_names(folder: str) -> None:
    assert alternative(load(folder, "apiserver")) == {
        "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
        "localhost", "c1", "c1.site.example", "127.0.0.1", "10.0.0.1", "10.96.0.1",
    }  # fmt: skip


def test_kubelet_serves_as_node_and_as_host(folder: str) -> None:
    assert {"hpk", "hpk-kubelet", "localhost", "c1", "c1.site.example", "127.0.0.1", "10.0.0.1"} == alternative(load(folder, "kubelet"))


def test_no_certificate_of_the_cluster_opens_etcd(folder: str) -> None:
    etcd_ca = load(folder, "etcd-ca")
    for leaf in wanted():
        if leaf.ca != "etcd-ca":
            with pytest.raises(Exception, match=r"."):
                load(folder, leaf.name).verify_directly_issued_by(etcd_ca)


def test_everything_is_private(folder: str) -> None:
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in os.listdir(folder):
        assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600, name


def test_ca_lives_ten_years_and_leaf_one(folder: str) -> None:
    assert load(folder, "ca").not_valid_after_utc == NOW + datetime.timedelta(days=3650)
    assert load(folder, "admin").not_valid_after_utc == NOW + datetime.timedelta(days=365)


def test_openssl_loads_key_and_certificate(folder: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for leaf in wanted():
        context.load_cert_chain(os.path.join(folder, f"{leaf.name}.crt"), os.path.join(folder, f"{leaf.name}.key"))


def test_second_start_changes_nothing(tmp_path: pathlib.Path) -> None:
    path = os.path.join(str(tmp_path), "pki")
    assert set(pki.PKI(path, now=NOW).ensure(wanted())) == {leaf.name for leaf in wanted()}
    before = {name: read(path, name) for name in os.listdir(path)}
    assert pki.PKI(path, now=NOW + datetime.timedelta(days=1)).ensure(wanted()) == []
    assert before == {name: read(path, name) for name in os.listdir(path)}


def test_another_node_gets_new_serving_certificates_from_the_same_ca(tmp_path: pathlib.Path) -> None:
    path = os.path.join(str(tmp_path), "pki")
    pki.PKI(path, now=NOW).ensure(wanted())
    ca, key = load(path, "ca"), read(path, "sa.key")
    assert set(pki.PKI(path, now=NOW).ensure(wanted("c2", "10.0.0.2"))) == {"apiserver", "kubelet"}
    assert "10.0.0.2" in alternative(load(path, "apiserver"))
    assert load(path, "ca") == ca
    assert read(path, "sa.key") == key


def test_renewed_before_it_expires(tmp_path: pathlib.Path) -> None:
    path = os.path.join(str(tmp_path), "pki")
    pki.PKI(path, now=NOW).ensure(wanted())
    assert pki.PKI(path, now=NOW + datetime.timedelta(days=365 - pki.RENEW_DAYS - 1)).ensure(wanted()) == []
    made = pki.PKI(path, now=NOW + datetime.timedelta(days=365 - pki.RENEW_DAYS)).ensure(wanted())
    assert set(made) == {leaf.name for leaf in wanted()}


def test_pair_left_half_written_is_made_anew(tmp_path: pathlib.Path) -> None:
    path = os.path.join(str(tmp_path), "pki")
    pki.PKI(path, now=NOW).ensure(wanted())
    os.replace(os.path.join(path, "admin.key"), os.path.join(path, "scheduler.key"))
    assert set(pki.PKI(path, now=NOW).ensure(wanted())) == {"admin", "scheduler"}
    key = serialization.load_pem_private_key(read(path, "scheduler.key"), None)
    assert pki._public(key.public_key()) == pki._public(load(path, "scheduler").public_key())


@pytest.mark.parametrize("damage", ["garbage", "expired"])
def test_a_bad_ca_is_told_and_left_alone(tmp_path: pathlib.Path, damage: str) -> None:
    path = os.path.join(str(tmp_path), "pki")
    pki.PKI(path, now=NOW).ensure(wanted())
    later = NOW
    if damage == "garbage":
        pathlib.Path(path, "ca.key").write_text("no key")
    else:
        later += datetime.timedelta(days=3640)
    before = read(path, "ca.crt")
    with pytest.raises(errors.StateError, match=r"ca\.crt"):
        pki.PKI(path, now=later).ensure(wanted())
    assert read(path, "ca.crt") == before
