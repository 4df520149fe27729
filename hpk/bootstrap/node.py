"""What this node is: its address as others reach it, its names, the site's name servers, and ports that are free here."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Mapping, Sequence

from hpk import errors

log = logging.getLogger(__name__)


def host_name() -> str:
    """Short host name, in lower case as DNS and Kubernetes want it."""
    return socket.gethostname().split(".")[0].lower()


def _own(address: str) -> bool:
    """Tell whether ``address`` is one of this node's: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def _resolve(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = [str(entry[4][0]).split("%")[0] for entry in found]
    return sorted(dict.fromkeys(addresses), key=lambda address: ":" in address)  # IPv4 first


def _route_source() -> str | None:
    """Address from which this node would speak to the world. Connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # TEST-NET-1: only the routing table is asked
            return str(sock.getsockname()[0])
        except OSError:
            return None


def address(configured: str = "") -> str:
    """Return the address by which the other nodes reach this one.

    ``configured`` (an address, or a name to resolve here, e.g. of a faster network) wins; then what the host name resolves to;
    then the source of the default route; at last loopback, for a machine that has no network at all. Raises InvalidInput when
    the configured one is not this node's.
    """
    if configured:
        candidates = [configured] if _is_address(configured) else _resolve(configured)
        for candidate in candidates:
            if _own(candidate):
                return candidate
        what = "is not an address of this node" if candidates else "does not resolve on this node"
        raise errors.InvalidInput(f"controlPlane.address: {configured!r} {what} ({host_name()})")
    for candidate in _resolve(socket.gethostname()):
        if usable(candidate) and _own(candidate):
            return candidate
    source = _route_source()
    if source and usable(source):
        return source
    log.warning("this node has no address that other nodes can reach; Pods on other nodes will not find the API server")
    return "127.0.0.1"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def usable(text: str) -> bool:
    """Tell whether other nodes may reach ``text``: Debian's 127.0.1.1 and link-local addresses are no use to them."""
    parsed = ipaddress.ip_address(text)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def names() -> tuple[str, ...]:
    """Return the names of this node for its certificates."""
    full = socket.gethostname().lower()
    found = [full, full.split(".")[0]]
    with contextlib.suppress(OSError):
        found.append(socket.getfqdn().lower())
    return tuple(name for name in dict.fromkeys(found) if name and name != "localhost" and name.isascii())


def resolvers(path: str = "/etc/resolv.conf") -> tuple[str, ...]:
    """Return the site's name servers as the node's resolv.conf lists them (scoped IPv6 addresses left out)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return ()
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return tuple(dict.fromkeys(server for server in servers if "%" not in server and _is_address(server)))


def _bind(where: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Go's listeners do: TIME_WAIT is not "taken"
    try:
        sock.bind((where, port))
    except OSError:
        sock.close()
        return None
    return sock


def choose_ports(wanted: Mapping[str, str], last: Mapping[str, int], fixed: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Return a free port for each name of ``wanted`` (name -> address to bind).

    ``fixed`` holds those that the user configured: name -> (configuration key, port); one that is taken is InvalidInput.
    ``last`` are those of the former run, used again where still free, so that copies of a kubeconfig stay good.
    All are held until all are chosen, so that no two get the same.
    """
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        for name in sorted(wanted, key=lambda name: (name not in fixed, name not in last)):
            where = wanted[name]
            if name in fixed:
                key, port = fixed[name]
                sock = _bind(where, port)
                if sock is None:
                    raise errors.InvalidInput(
                        f"{key}: port {port} of {where} is taken or not allowed on {host_name()}",
                        hint=f"choose another {key}, or 0 for any free port",
                    )
            else:
                sock = (_bind(where, last[name]) if name in last else None) or _bind(where, 0)
                if sock is None:
                    raise errors.StateError(f"no free port at {where} on {host_name()}")
            held.enter_context(sock)
            chosen[name] = int(sock.getsockname()[1])
    return {name: chosen[name] for name in wanted}


def last_ports(raw: object, names: Sequence[str]) -> dict[str, int]:
    """Return what is usable of ``run/ports.json``."""
    if not isinstance(raw, dict):
        return {}
    return {name: raw[name] for name in names if isinstance(raw.get(name), int) and 1024 <= raw[name] <= 65535}
