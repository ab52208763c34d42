"""Configures the sandbox's network namespace by netlink: its loopback, and the prefixes that it must not reach.

A blocked prefix is a route of type `unreachable`. No host firewall is touched, it needs no privilege outside, and no
process in the sandbox has the capability to remove it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable

_NEW_ROUTE, _DELETE_ROUTE, _ERROR = 24, 25, 2
_REQUEST, _ACKNOWLEDGE, _REPLACE, _CREATE = 1, 4, 0x100, 0x400
_MAIN_TABLE, _STATIC, _UNREACHABLE, _DESTINATION = 254, 4, 7, 1
_NO_SUCH_ROUTE = frozenset({2, 3})
_NO_IPV6 = frozenset({13, 19, 95, 97})


def bring_up_loopback() -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, get_flags, struct.pack("16sH22x", b"lo", 0))
        flags = struct.unpack_from("16sH", request)[1]
        fcntl.ioctl(control, set_flags, struct.pack("16sH22x", b"lo", flags | up))


def update_blocked_routes(add: Iterable[str], remove: Iterable[str] = ()) -> None:
    """Block prefixes such as `192.0.2.7/32` and unblock others. Raises: OSError, naming the prefix."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
        for prefix in remove:
            _route(netlink, _DELETE_ROUTE, _REQUEST | _ACKNOWLEDGE, prefix)
        for prefix in add:
            _route(netlink, _NEW_ROUTE, _REQUEST | _ACKNOWLEDGE | _CREATE | _REPLACE, prefix)


def _route(netlink: socket.socket, kind: int, flags: int, prefix: str) -> None:
    address, _, length = prefix.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    route = struct.pack("=8BI", family, int(length), 0, 0, _MAIN_TABLE, _STATIC, 0, _UNREACHABLE, 0)
    destination = struct.pack("=HH", 4 + len(packed), _DESTINATION) + packed
    size = 16 + len(route) + len(destination)
    netlink.send(struct.pack("=IHHII", size, kind, flags, 1, 0) + route + destination)
    reply_kind, code = struct.unpack_from("=4xH10xi", netlink.recv(4096))
    harmless = (kind == _DELETE_ROUTE and -code in _NO_SUCH_ROUTE) or (family == socket.AF_INET6 and -code in _NO_IPV6)
    if reply_kind == _ERROR and code != 0 and not harmless:
        raise OSError(-code, f"blocking {prefix}: {os.strerror(-code)}")
