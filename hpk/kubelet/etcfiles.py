"""Names in a Pod: its hostname, /etc/hosts, /etc/resolv.conf. Pure.

A Pod that shares its node's network resolves names as its node does: the node's /etc/hosts is appended to the Pod's own, and
resolv.conf stays the node's, unless dnsPolicy None or dnsConfig say otherwise.
Source: kubelet's ensureHostsFile, generatePodHostNameAndDomain, network/dns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpk import errors
from hpk.kubelet import podplan

Object = Mapping[str, Any]

#: Longest name of a host in the kernel, and of a DNS label.
_MAX_HOSTNAME = 64
_MAX_LABEL = 63
_MAX_SEARCH = 32
_MAX_NAMESERVERS = 3


def hostname(pod: Object, cluster_domain: str) -> tuple[str, str]:
    """Return the Pod's hostname and its fully qualified name ("" without subdomain). Raises Rejected."""
    spec, metadata = pod["spec"], pod["metadata"]
    if spec.get("hostnameOverride"):
        return str(spec["hostnameOverride"]), ""
    name = spec.get("hostname") or metadata["name"]
    if len(name) > _MAX_LABEL:
        name = name[:_MAX_LABEL].rstrip("-.")
    if not spec.get("subdomain"):
        return name, ""
    full = f"{name}.{spec['subdomain']}.{metadata.get('namespace') or 'default'}.svc.{cluster_domain}"
    if spec.get("setHostnameAsFQDN"):
        if len(full) > _MAX_HOSTNAME:
            raise errors.Rejected(
                "UnsupportedPodSpec",
                f"Pod was rejected: spec.setHostnameAsFQDN: {full} is longer than {_MAX_HOSTNAME} characters, the kernel's limit",
            )
        return full, full
    return name, full


def hosts(pod: Object, cluster_domain: str) -> podplan.JobVolume:
    """Return the Pod's /etc/hosts, made in the job: only there is the Pod's address known."""
    spec = pod["spec"]
    lines = []
    if spec.get("hostNetwork"):
        lines.append("# Kubernetes-managed hosts file (host network).")
    else:
        name, full = hostname(pod, cluster_domain)
        lines += [
            "# Kubernetes-managed hosts file.",
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::0\tip6-localnet",
            "fe00::0\tip6-mcastprefix",
            "fe00::1\tip6-allnodes",
            "fe00::2\tip6-allrouters",
            "\t".join([podplan.POD_IP, *([full] if full and full != name else []), name]),
        ]
    aliases = spec.get("hostAliases") or []
    if aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += ["\t".join([_word(alias["ip"]), *map(_word, alias.get("hostnames") or [])]) for alias in aliases]
    path = f"{podplan.SCRATCH}/etc/hosts"
    return podplan.JobVolume("hosts", "hosts", path=path, content="\n".join(lines) + "\n", node_hosts=True)


def resolv_conf(pod: Object, node: str) -> str | None:
    """Return the content of /etc/resolv.conf, None where the node's own serves. ``node`` is that file of the kubelet's node."""
    spec = pod["spec"]
    policy, wanted = spec.get("dnsPolicy") or "ClusterFirst", spec.get("dnsConfig") or {}
    if policy != "None" and not wanted:
        return None
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    for line in node.splitlines() if policy != "None" else ():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            servers.append(words[1])
        elif words[:1] in (["search"], ["domain"]):
            searches = words[1:]
        elif words[:1] == ["options"]:
            options.update((name, value) for name, _, value in (word.partition(":") for word in words[1:]))
    servers += wanted.get("nameservers") or []
    searches += wanted.get("searches") or []
    options.update((option["name"], option.get("value") or "") for option in wanted.get("options") or [])
    lines = [f"nameserver {_word(server)}" for server in list(dict.fromkeys(servers))[:_MAX_NAMESERVERS]]
    if searches:
        lines.append("search " + " ".join(map(_word, list(dict.fromkeys(searches))[:_MAX_SEARCH])))
    if options:
        lines.append("options " + " ".join(_word(f"{name}:{value}" if value else name) for name, value in options.items()))
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """A field of a line: what holds blanks would be another line or field."""
    return "".join(str(text).split())
