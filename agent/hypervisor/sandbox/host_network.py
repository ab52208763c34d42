"""The host's own addresses and default routes, as the kernel reports them, and a wait for their changes."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

# Groups of route netlink, for IPv4 and IPv6.
ADDRESSES = 0x10 | 0x100
ROUTES = 0x40 | 0x400
_DEBOUNCE = 0.1  # seconds: changes come in bursts

# Where clouds tell a machine its secrets, and where every program that listens is reached at once.
_ALWAYS_BLOCKED = ("169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "fd00:ec2::254/128")


def blocked_prefixes() -> frozenset[str]:
    """Return the prefixes that guests may not reach although `pasta` would carry their packets there.

    Every address of this host but its loopback: the agent and each service that listens on more than the loopback
    would answer there. Also link-local (cloud metadata), multicast and reserved prefixes.
    """
    return frozenset((*_ALWAYS_BLOCKED, *_ipv4(), *_ipv6()))


def default_routes(tables: Path = Path("/proc/net")) -> frozenset[str]:
    """Return the interface of the best default route for each IP version that has one, such as `4 eth0`."""
    best: dict[str, tuple[int, str]] = {}
    for version, metric, interface in (*_default_routes_4(tables), *_default_routes_6(tables)):
        best[version] = min(best.get(version, (metric, interface)), (metric, interface))
    return frozenset(f"{version} {interface}" for version, (_, interface) in best.items())


@contextmanager
def watch_changes(groups: int) -> Iterator[Callable[[], Awaitable[None]]]:
    """Yield a function that waits for a change in the netlink groups and for the end of its burst."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as netlink:
        netlink.bind((0, groups))

        async def changed() -> None:
            await trio.lowlevel.wait_readable(netlink)
            await trio.sleep(_DEBOUNCE)
            with suppress(OSError):  # drained, or more came than the kernel kept: a change all the same
                while netlink.recv(65536):
                    pass

        yield changed


def _default_routes_4(tables: Path) -> Iterator[tuple[str, int, str]]:
    for row in _rows(tables / "route"):
        if row[1] == row[7] == "00000000":
            yield "4", int(row[6]), row[0]


def _default_routes_6(tables: Path) -> Iterator[tuple[str, int, str]]:
    for row in _rows(tables / "ipv6_route"):
        if (row[0], row[1]) == ("0" * 32, "00") and row[9] != "lo":
            yield "6", int(row[5], 16), row[9]


def _rows(table: Path) -> list[list[str]]:
    try:
        return [line.split() for line in table.read_text().splitlines()]
    except OSError:  # a kernel without IPv6, a process that ended
        return []


def _ipv4() -> Iterator[str]:
    address = ""
    for line in Path("/proc/net/fib_trie").read_text().splitlines():
        if "|-- " in line:
            address = line.rpartition(" ")[2]
        elif line.endswith("/32 host LOCAL") and not address.startswith("127."):
            yield f"{address}/32"


def _ipv6() -> Iterator[str]:
    for row in _rows(Path("/proc/net/if_inet6")):
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0]))
        if address != "::1":
            yield f"{address}/128"
