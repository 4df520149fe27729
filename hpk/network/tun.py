"""The Pod's network device: made in the Pod's network namespace, used from outside of it.

Standard library only: it runs in the job. What reads and writes the descriptor is hpk-wire (hpk/pod/wire.py), whose socket is on
the node; so packets need no way out of the namespace. Interface settings by ioctl, see netdevice(7); TUN: Linux'
Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from hpk import sandbox

DEVICE = "/dev/net/tun"
#: Bytes that encryption adds to a packet: the UDP datagram's own IPv6 and UDP headers (40 + 8) and WireGuard's (16 + 16).
OVERHEAD = 80
#: Smallest and largest MTU that hpk-wire takes.
MTU_RANGE = (576, 65000)

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000  # large packets cross the device whole, without it the throughput is a fifth
_SIOCADDRT = 0x890B
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_IFF_UP = 1
_RTF_UP = 1


class TunError(Exception):
    """The device cannot be made. The message says what the site can do."""


def make(box: sandbox.Sandbox, name: str, address: str, mtu: int, routes: tuple[str, ...] = ()) -> int:
    """Make the TUN device ``name`` in the Pod's namespaces and return its descriptor; the device is there as long as it is open.

    ``address`` is ADDRESS/BITS, IPv4, and the range is reached through the device, as are those in ``routes``. The namespace's
    loopback device is brought up too. Raises TunError.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    sandbox.enter(box)
                    fd = _create(name)
                    _configure(name, address, mtu, routes)
                    socket.send_fds(theirs, [b"0"], [fd])
                except OSError as error:
                    theirs.send(f"{error.errno or 0} {error.strerror or error}: {error.filename or name}".encode())
            finally:
                os._exit(0)
        theirs.close()
        try:
            data, fds, _, _ = socket.recv_fds(ours, 4096, 1)
        finally:
            os.waitpid(pid, 0)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    number, _, text = data.decode(errors="replace").partition(" ")
    raise TunError(f"cannot make the Pod's network device: {text or 'the child died'}{_advice(int(number or 0))}")


def _create(name: str) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    return fd


def _configure(name: str, address: str, mtu: int, routes: tuple[str, ...]) -> None:
    host, mask = _range(address)
    interface = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("16s16s8x", interface, _sockaddr(host)))
        fcntl.ioctl(control, _SIOCSIFNETMASK, struct.pack("16s16s8x", interface, _sockaddr(mask)))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", interface, mtu))
        for each in (interface, b"lo"):
            flags = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", each)))[0]
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", each, flags | _IFF_UP))
        for route in routes:
            _add_route(control, name, *_range(route))


def _add_route(control: socket.socket, name: str, host: str, mask: str) -> None:
    import ctypes

    device = ctypes.create_string_buffer(name.encode())
    entry = struct.pack(  # struct rtentry of linux/route.h: an unsigned long, three addresses, flags, ..., the name's address, ...
        "@L16s16s16sHhLLhPLLH",
        *(0, _sockaddr(host), _sockaddr("0.0.0.0"), _sockaddr(mask), _RTF_UP, 0, 0, 0, 0, ctypes.addressof(device), 0, 0, 0),  # noqa: S104
    )
    fcntl.ioctl(control, _SIOCADDRT, entry)


def _range(text: str) -> tuple[str, str]:
    """Address and netmask of ADDRESS/BITS. Raises OSError (EINVAL)."""
    host, _, bits = text.partition("/")
    try:
        socket.inet_aton(host)
        length = int(bits)
    except (OSError, ValueError):
        length = -1
    if not 0 <= length <= 32 or host.count(".") != 3:
        raise OSError(errno.EINVAL, "expected an IPv4 address range as 10.200.0.5/16", text)
    return host, socket.inet_ntoa(struct.pack(">I", (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF))


def _sockaddr(host: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(host))


def _advice(number: int) -> str:
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "; the site can load the kernel module tun (modprobe tun)"
    if number in (errno.EACCES, errno.EPERM):
        return "; the site can let users open it (chmod 0666 /dev/net/tun), as is usual"
    return ""


def mtu(host_ip: str) -> int:
    """MTU for the Pod's device on this node, in bytes: that of the interface with the address ``host_ip``, less the overhead."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s24x", name.encode())
            try:
                if socket.inet_ntoa(fcntl.ioctl(control, _SIOCGIFADDR, request)[20:24]) != host_ip:
                    continue
                found = struct.unpack_from("16xi", fcntl.ioctl(control, _SIOCGIFMTU, request))[0]
            except OSError:
                continue  # an interface without an IPv4 address, or one that has just gone
            return int(min(max(found - OVERHEAD, MTU_RANGE[0]), MTU_RANGE[1]))
    return 1500 - OVERHEAD
