"""Multiaddrs as this room uses them: TCP over IPv4, IPv6 or a DNS name, straight or through a relay. Pure text.

    /ip4/192.0.2.1/tcp/4001/p2p/<peer>                             straight
    /ip4/192.0.2.1/tcp/4001/p2p/<relay>/p2p-circuit/p2p/<peer>     through a relay
Anything else is no address to us: what a stranger tells is a hint at best.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

MAX_LENGTH: Final = 512
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{10,128}")
_CIRCUIT: Final = "p2p-circuit"


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
    def loopback(self) -> bool:
        return (self.kind == "ip4" and IPv4Address(self.host).is_loopback) or (
            self.kind == "ip6" and IPv6Address(self.host).is_loopback
        )

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


def expand(address: Address, interfaces: Sequence[str]) -> list[Address]:
    """An unspecified address as one for each of the machine's `interfaces`, or loopback when it has none."""
    if not address.unspecified:
        return [address]
    version = IPv4Address if address.kind == "ip4" else IPv6Address
    own = [host for host in interfaces if (":" in host) == (version is IPv6Address)]
    return [replace(address, host=host) for host in own or ["127.0.0.1" if version is IPv4Address else "::1"]]


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
