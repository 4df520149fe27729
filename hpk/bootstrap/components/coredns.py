"""CoreDNS: the cluster's names from the API server, all others from the site's name servers.

Until Pods have a network of their own nobody can be sent to it at port 53, so it listens on loopback, and as every user of the
node can reach that, it speaks DNS over TLS (RFC 7858) to clients with a certificate of the cluster's CA.
"""

from __future__ import annotations

from hpk.bootstrap import component


def corefile(run: component.Run) -> str:
    """Return the configuration."""
    reverse = "in-addr.arpa ip6.arpa"
    forward = [f"    forward . {' '.join(run.resolvers)}"] if run.resolvers else []
    return "\n".join(
        [
            f"tls://.:{run.ports['dns']} {{",
            "    bind 127.0.0.1",
            f"    tls {run.pki('coredns-server.crt')} {run.pki('coredns-server.key')} {run.pki('ca.crt')} {{",
            "        client_auth require_and_verify",
            "    }",
            "    errors",
            f"    ready 127.0.0.1:{run.ports['dns-ready']}",
            f"    kubernetes {run.config.cluster.domain} {reverse} {{",
            f"        kubeconfig {run.paths.component_kubeconfig('coredns')}",
            "        pods insecure",
            f"        fallthrough {reverse}",
            "        ttl 30",
            "    }",
            *forward,
            "    cache 30",
            "    loadbalance",
            "}",
            "",
        ]
    )


def corefile_path(run: component.Run) -> str:
    return f"{run.paths.run}/Corefile"


def build(run: component.Run) -> component.Component:
    return component.Component(
        name="coredns",
        summary="DNS",
        argv=component.in_container(run, "coredns", [f"-conf={corefile_path(run)}"], env={"GOGC": "50", "GOMEMLIMIT": "48MiB"}),
        links=("kube-apiserver",),
        ready=component.Check(f"http://127.0.0.1:{run.ports['dns-ready']}/ready"),
        stop_timeout=5.0,
        certificates=("coredns", "coredns-server"),
    )
