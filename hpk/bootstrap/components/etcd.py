"""etcd: one member, on loopback, for clients with a certificate of its own CA only."""

from __future__ import annotations

from hpk.bootstrap import component

#: The address in the member's record is never dialled (there is no other member), so it may be the same for ever, whatever port
#: the peer listener gets in this run.
_PEER = "https://localhost:2380"


def build(run: component.Run) -> component.Component:
    client = f"https://127.0.0.1:{run.ports['etcd']}"
    flags = [
        "--name=hpk",
        f"--data-dir={run.etcd_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls=https://127.0.0.1:{run.ports['etcd-peer']}",
        f"--initial-advertise-peer-urls={_PEER}",
        f"--initial-cluster=hpk={_PEER}",
        "--client-cert-auth=true",
        f"--cert-file={run.pki('etcd-server.crt')}",
        f"--key-file={run.pki('etcd-server.key')}",
        f"--trusted-ca-file={run.pki('etcd-ca.crt')}",
        "--peer-client-cert-auth=true",
        f"--peer-cert-file={run.pki('etcd-server.crt')}",
        f"--peer-key-file={run.pki('etcd-server.key')}",
        f"--peer-trusted-ca-file={run.pki('etcd-ca.crt')}",
        # A lone member votes for itself after the election timeout: a short one saves that time at each start. Nobody else
        # listens to the heartbeats.
        "--heartbeat-interval=20",
        "--election-timeout=200",
        # kube-apiserver compacts every five minutes; this bounds the file when it could not
        "--quota-backend-bytes=2147483648",
        "--snapshot-count=10000",
        "--log-level=warn",
    ]
    return component.Component(
        name="etcd",
        summary="etcd",
        argv=component.in_container(run, "etcd", flags, writable=[run.etcd_dir], env={"GOGC": "50", "GOMEMLIMIT": "200MiB"}),
        ready=component.Check(
            f"{client}/readyz", run.pki("etcd-ca.crt"), run.pki("apiserver-etcd-client.crt"), run.pki("apiserver-etcd-client.key")
        ),
    )
