"""The two things the agent asks of a network namespace itself: loopback up, and the addresses of an interface.

By hand, not by a netlink library: pyroute2 (0.9.7) costs 270 ms of import and 15 MB in every process that touches it, and
0.7 ms and an event loop per request against 0.07 ms here; for two requests that is not worth it. Everything acts on the
network namespace of the calling thread, so callers are throw-away threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ_FLAGS = struct.Struct("16sh14x")

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_RT_SCOPE_UNIVERSE = 0


def set_up(ifname: str) -> None:
    """Bring an interface up, as `ip link set IFNAME up`. Raises OSError: ENODEV if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = bytearray(_IFREQ_FLAGS.pack(ifname.encode(), 0))
        fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        name, flags = _IFREQ_FLAGS.unpack(request)
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name, flags | _IFF_UP))


def global_addresses(ifname: str) -> list[str]:
    """The addresses of an interface that others can reach it by, without prefix length, IPv4 first, else in the kernel's order.

    Raises:
        OSError: ENODEV, there is no such interface.
    """
    try:
        index = socket.if_nametoindex(ifname)
    except OSError as error:  # without an errno
        raise OSError(errno.ENODEV, "no such interface", ifname) from error
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as route:
        route.bind((0, 0))
        message = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        header = _HEADER.pack(_HEADER.size + len(message), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        route.send(header + message)
        addresses = []
        for kind, payload in _dump(route):
            if kind == _RTM_NEWADDR:
                addresses += _address(payload, index)
    return sorted(addresses, key=lambda address: ip_address(address).version)


def _dump(route: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The messages of an answer, type and payload, until the kernel says that it was the last."""
    while True:
        datagram = route.recv(1 << 16)
        while datagram:
            length, kind, _, _, _ = _HEADER.unpack_from(datagram)
            payload = datagram[_HEADER.size : length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, f"netlink: {os.strerror(code)}")
            yield kind, payload
            datagram = datagram[_aligned(length) :]


def _address(payload: bytes, index: int) -> list[str]:
    """The address of one RTM_NEWADDR, if it is of that interface and global."""
    family, _, _, scope, interface = _IFADDRMSG.unpack_from(payload)
    if interface != index or scope != _RT_SCOPE_UNIVERSE:
        return []
    attributes: dict[int, bytes] = {}
    rest = payload[_IFADDRMSG.size :]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        attributes[kind] = rest[_ATTRIBUTE.size : length]
        rest = rest[_aligned(max(length, _ATTRIBUTE.size)) :]
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL, where there is one, is always ours.
    address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    return [socket.inet_ntop(family, address)] if address and family in {socket.AF_INET, socket.AF_INET6} else []


def _aligned(length: int) -> int:
    return (length + 3) & ~3
