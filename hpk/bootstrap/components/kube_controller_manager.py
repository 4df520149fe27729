"""kube-controller-manager: every controller that makes sense without a cloud and without a network plugin."""

from __future__ import annotations

from hpk.bootstrap import component

#: Off: there is no cloud, the kubelet gives Pods their addresses, nodes do not join with bootstrap tokens.
OFF = (
    "cloud-node-lifecycle-controller",
    "node-ipam-controller",
    "node-route-controller",
    "service-lb-controller",
    "bootstrap-signer-controller",
    "token-cleaner-controller",
)


def build(run: component.Run) -> component.Component:
    kubeconfig = run.paths.component_kubeconfig("kube-controller-manager")
    flags = [
        "--bind-address=127.0.0.1",
        f"--secure-port={run.ports['kcm']}",
        f"--tls-cert-file={run.pki('kube-controller-manager-server.crt')}",
        f"--tls-private-key-file={run.pki('kube-controller-manager-server.key')}",
        f"--client-ca-file={run.pki('ca.crt')}",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--requestheader-client-ca-file={run.pki('front-proxy-ca.crt')}",
        "--controllers=*," + ",".join(f"-{name}" for name in OFF),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={run.pki('sa.key')}",
        f"--root-ca-file={run.pki('ca.crt')}",
        f"--cluster-signing-cert-file={run.pki('ca.crt')}",
        f"--cluster-signing-key-file={run.pki('ca.key')}",
        f"--cluster-name={run.config.cluster.name}",
        # One instance by construction (hpk/bootstrap/lock.py). A lease left by the last run would cost 15 s.
        "--leader-elect=false",
        # Its own client makes a service account and a token for each of some thirty controllers at start: at the default
        # 20 requests a second that alone takes seconds.
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        "--profiling=false",
        f"--v={run.config.control_plane.verbosity}",
    ]
    return component.Component(
        name="kube-controller-manager",
        summary="controller manager",
        argv=component.in_container(run, "kube-controller-manager", flags, env={"GOGC": "50", "GOMEMLIMIT": "300MiB"}),
        links=("kube-apiserver",),
        ready=component.Check(f"https://127.0.0.1:{run.ports['kcm']}/healthz", run.pki("ca.crt")),
        stop_timeout=5.0,
        certificates=("kube-controller-manager",),
    )
