"""kube-apiserver: on the node's address, for everybody whom the cluster's CA or a service account token vouches for."""

from __future__ import annotations

import ipaddress
import signal

from hpk.bootstrap import component


def service_ip(service_cidr: str) -> str:
    """Address of the Service ``kubernetes``: the first of the range, as the API server itself takes it."""
    return str(ipaddress.ip_network(service_cidr)[1])


def build(run: component.Run) -> component.Component:
    issuer = f"https://kubernetes.default.svc.{run.config.cluster.domain}"
    flags = [
        f"--bind-address={run.address}",
        f"--advertise-address={run.address}",
        f"--secure-port={run.ports['apiserver']}",
        f"--tls-cert-file={run.pki('apiserver.crt')}",
        f"--tls-private-key-file={run.pki('apiserver.key')}",
        f"--client-ca-file={run.pki('ca.crt')}",
        f"--etcd-servers=https://127.0.0.1:{run.ports['etcd']}",
        f"--etcd-cafile={run.pki('etcd-ca.crt')}",
        f"--etcd-certfile={run.pki('apiserver-etcd-client.crt')}",
        f"--etcd-keyfile={run.pki('apiserver-etcd-client.key')}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",  # the kubelet refuses privileged Pods with a reason that names the field
        f"--service-cluster-ip-range={run.config.cluster.service_cidr}",
        f"--service-account-issuer={issuer}",
        f"--service-account-key-file={run.pki('sa.pub')}",
        f"--service-account-signing-key-file={run.pki('sa.key')}",
        f"--kubelet-certificate-authority={run.pki('ca.crt')}",
        f"--kubelet-client-certificate={run.pki('apiserver-kubelet-client.crt')}",
        f"--kubelet-client-key={run.pki('apiserver-kubelet-client.key')}",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        f"--requestheader-client-ca-file={run.pki('front-proxy-ca.crt')}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={run.pki('front-proxy-client.crt')}",
        f"--proxy-client-key-file={run.pki('front-proxy-client.key')}",
        "--profiling=false",
        f"--v={run.config.control_plane.verbosity}",
    ]
    if ipaddress.ip_address(run.address).is_loopback:
        # a machine without a network: an EndpointSlice with a loopback address would be refused every ten seconds
        flags.append("--endpoint-reconciler-type=none")
    return component.Component(
        name="kube-apiserver",
        summary="API server",
        argv=component.in_container(run, "kube-apiserver", flags, env={"GOGC": "50", "GOMEMLIMIT": "900MiB"}),
        links=("etcd",),
        ready=component.Check(f"{run.api_server}/readyz", run.pki("ca.crt"), run.pki("admin.crt"), run.pki("admin.key")),
        ready_timeout=120.0,
        stop_timeout=15.0,
        # at once: while it shuts down in order it would wait a minute for etcd, which goes at the same moment
        orphan_signal=signal.SIGHUP,
    )
