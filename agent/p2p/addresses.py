"""Multiaddrs as this room uses them: TCP over IPv4, IPv6 or a DNS name, straight or through a relay. Pure text.

    /ip4/192.0.2.1/tcp/4001/p2p/<peer>                             straight
    /ip4/192.0.2.1/tcp/4001/p2p/<relay>/p2p-circuit/p2p/<peer>     through a relay
Anything else is no address to us: what a stranger tells is a hint at best.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count
from typing import Final

MAX_LENGTH: Final = 512
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{10,128}")
_CIRCUIT: Final = "p2p-circuit"


class Scope(IntEnum):
    """From where an IP address can be used: any network, a private one, one network segment, its own machine."""

    GLOBAL = 0
    PRIVATE = 1
    LINK = 2
    MACHINE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`kind` is `ip4`, `ip6`, `dns`, `dns4` or `dns6`. With a `relay`, `host` and `port` are the relay's."""

    kind: str
    host: str
    port: int
    relay: str | None = None
    peer_id: str | None = None

    @property
    def unspecified(self) -> bool:
        """It stands for every interface of the machine."""
        return self.kind in ("ip4", "ip6") and self.host in ("0.0.0.0", "::")  # noqa: S104 - it is compared, not bound

    @property
    def scope(self) -> Scope:
        """Return from where it can be used; what a name stands for is not known, and taken for global."""
        if self.kind not in ("ip4", "ip6"):
            return Scope.GLOBAL
        host = ip_address(self.host)
        if host.is_loopback or host.is_unspecified:
            return Scope.MACHINE
        if host.is_link_local:
            return Scope.LINK
        return Scope.GLOBAL if host.is_global else Scope.PRIVATE

    @property
    def loopback(self) -> bool:
        return self.kind in ("ip4", "ip6") and ip_address(self.host).is_loopback

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/tcp/{self.port}"
        if self.relay:
            text += f"/p2p/{self.relay}/{_CIRCUIT}"
        return f"{text}/p2p/{self.peer_id}" if self.peer_id else text


def bare(text: str) -> str:
    """Without the peer's own ID at the end; an address through a relay needs it."""
    return text if _CIRCUIT in text else text.partition("/p2p/")[0]


def parse(text: str) -> Address:
    """Raises: ValueError, saying what is wrong with it."""
    parts = text.split("/") if len(text) <= MAX_LENGTH else []
    if len(parts) < 5 or parts[0] or parts[3] != "tcp":
        raise ValueError(f"{text[:80]!r} is no address like /ip4/192.0.2.1/tcp/4001")
    host = _host(parts[1], parts[2], text)
    if not (parts[4].isascii() and parts[4].isdigit() and len(parts[4]) <= 5 and int(parts[4]) < 65536):
        raise ValueError(f"{text!r} has no port from 0 to 65535")
    relay, peer_id = _peers(parts[5:], text)
    return Address(kind=parts[1], host=host, port=int(parts[4]), relay=relay, peer_id=peer_id)


def parse_all(texts: Sequence[str], *, most: int) -> list[Address]:
    """The first `most` that are addresses, each once; what is none is left out."""
    found: dict[Address, None] = {}
    for text in texts:
        try:
            found[parse(text)] = None
        except ValueError:
            continue
        if len(found) == most:
            break
    return list(found)


def expand(addresses: Sequence[Address], interfaces: Sequence[str]) -> list[Address]:
    """Return unspecified addresses as one for each of the machine's `interfaces` of that kind, others as they are.

    Where that leaves none, they are the loopback's: programs of this machine reach it there.
    """
    found = [each for address in addresses for each in _on_interfaces(address, interfaces)]
    return found or [each for address in addresses for each in _on_interfaces(address, ["127.0.0.1", "::1"])]


def _on_interfaces(address: Address, interfaces: Sequence[str]) -> list[Address]:
    if not address.unspecified:
        return [address]
    return [replace(address, host=host) for host in interfaces if (":" in host) == (address.kind == "ip6")]


def for_others(texts: Iterable[str]) -> list[str]:
    """Return addresses without the peer's own ID, the ones that most others can use first.

    Others may have IPv4 or IPv6 alone, or need a relay: the first few have the best of each way. Those that only this
    machine or its network segment can use come last. What is no address, as in a network in memory, stays in its place.
    """
    turns: defaultdict[tuple[str, bool], count[int]] = defaultdict(count)
    ranked = []
    for text in sorted(map(bare, texts), key=_scope):
        scope, address = _scope(text), _parsed(text)
        way = (address.kind, address.relay is not None) if address else ("", False)
        ranked.append((max(scope, Scope.PRIVATE), next(turns[way]), scope, text))
    return [text for *_, text in sorted(ranked, key=lambda rank: rank[:3])]


def widest_scope(texts: Iterable[str]) -> Scope | None:
    """Return the widest scope of some addresses, None when there are none; what is none counts as global."""
    return min((_scope(text) for text in texts), default=None)


def _scope(text: str) -> Scope:
    address = _parsed(text)
    return address.scope if address else Scope.GLOBAL


def _parsed(text: str) -> Address | None:
    try:
        return parse(text)
    except ValueError:
        return None


def _host(kind: str, host: str, text: str) -> str:
    if kind in ("dns", "dns4", "dns6"):
        if len(host) > 253 or not _NAME.fullmatch(host):
            raise ValueError(f"{text!r} has no host name")
        return host
    if kind not in ("ip4", "ip6"):
        raise ValueError(f"{text!r} is neither ip4, ip6 nor dns")
    return str(IPv4Address(host) if kind == "ip4" else IPv6Address(host))


def _peers(rest: list[str], text: str) -> tuple[str | None, str | None]:
    """The relay and the peer that an address ends in."""
    ids = [part for name, part in zip(rest[::2], rest[1::2], strict=False) if name == "p2p"]
    match rest:
        case []:
            relay, peer_id = None, None
        case ["p2p", peer_id]:
            relay = None
        case ["p2p", relay, circuit] if circuit == _CIRCUIT:
            peer_id = None
            ids = [relay]
        case ["p2p", relay, circuit, "p2p", peer_id] if circuit == _CIRCUIT:
            ids = [relay, peer_id]
        case _:
            raise ValueError(f"{text!r} does not end in /p2p/<peer>")
    if not all(_PEER_ID.fullmatch(part) for part in ids):
        raise ValueError(f"{text!r} names no peer ID")
    return relay, peer_id
