"""What guests may not reach though `pasta` would carry it there: the machine's own addresses, and some of no good use.

The agent and every other service of the machine that listens on more than its loopback would answer them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IPV4_ADDRESSES, _IPV6_ADDRESSES = 0x10, 0x100  # groups of route netlink

# Where clouds tell a machine its secrets, and where every program that listens is reached at once.
_ALWAYS = ("169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "fd00:ec2::254/128")


def unreachable() -> frozenset[str]:
    """Every address of this machine but its loopback, and what is always out of reach, as prefixes."""
    return frozenset((*_ALWAYS, *_ipv4(), *_ipv6()))


@contextmanager
def changes() -> Iterator[socket.socket]:
    """A socket that becomes readable when an address comes or goes."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as link:
        link.bind((0, _IPV4_ADDRESSES | _IPV6_ADDRESSES))
        yield link


def _ipv4() -> Iterator[str]:
    address = ""
    for line in Path("/proc/net/fib_trie").read_text().splitlines():
        if "|-- " in line:
            address = line.rpartition(" ")[2]
        elif line.endswith("/32 host LOCAL") and not address.startswith("127."):
            yield f"{address}/32"


def _ipv6() -> Iterator[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return
    for line in lines:
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0]))
        if address != "::1":
            yield f"{address}/128"
