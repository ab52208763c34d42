"""What is dialled on the word of others: no port, address or machine that a peer could only want attacked.

Addresses that the configuration names are dialled as they are. Where a peer was reached before, and where it says
itself that it is, may be a port below 1024; a third party's word may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from ..token_buckets import TokenBuckets
from .address_book import Origin
from .addresses import Address, parse

MIN_PORT: Final = 1024
DIALS_AT_ONCE: Final = 60
DIALS_PER_HOUR: Final = 900
"""To one address and port, whoever is said to be there: every 4 s, which the retries for one peer never are."""
MAX_TARGETS: Final = 4096
METADATA: Final = frozenset(
    map(
        ip_address,
        ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    )
)
"""Where machines of cloud providers find their own credentials."""


class DialPolicy:
    """Chooses which addresses are dialled now."""

    def __init__(self) -> None:
        self._targets = TokenBuckets(DIALS_PER_HOUR / 3600, DIALS_AT_ONCE, MAX_TARGETS)

    def choose(self, known: Iterable[tuple[str, Origin]], own: Sequence[str], now: float) -> list[str]:
        """Return what may be dialled of `known`, and count it. `own` are this node's addresses; `now` is in seconds."""
        mine = [found for text in own if (found := _parsed(text))]
        return [
            text
            for text, origin in known
            if origin is Origin.CONFIGURED or (_is_allowed(text, origin, mine) and self._count(text, now))
        ]

    def _count(self, text: str, now: float) -> bool:
        address = _parsed(text)
        return address is None or not self._targets.take(f"{address.host} {address.port}", now)


def _is_allowed(text: str, origin: Origin, own: Sequence[Address]) -> bool:
    """Return whether an address may be dialled; one that is none, as those of a network in memory, is harmless."""
    address = _parsed(text)
    if address is None or origin is Origin.REACHED:
        return True
    if origin is Origin.HINT and address.port < MIN_PORT:
        return False
    host = _host(address)
    if host is None or host in METADATA or host.is_multicast or host.is_unspecified:
        return False
    others = [found for mine in own if (found := _host(mine))]
    return (not host.is_loopback or any(mine.is_loopback for mine in others)) and (
        not host.is_link_local or any(mine.is_link_local for mine in others)
    )


def _host(address: Address) -> IPv4Address | IPv6Address | None:
    """Return the IP address, None for a name: what it stands for can change after it was looked at."""
    if address.kind not in {"ip4", "ip6"}:
        return None
    host = ip_address(address.host)
    return host.ipv4_mapped or host if isinstance(host, IPv6Address) else host


def _parsed(text: str) -> Address | None:
    try:
        return parse(text)
    except ValueError:
        return None
