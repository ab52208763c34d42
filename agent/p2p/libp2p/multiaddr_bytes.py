"""Addresses as libp2p's messages carry them: the binary form of a multiaddr. Only the kinds that we dial."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ....protocols import base58
from ..addresses import Address, parse
from .varint import decode_varint, encode_varint

_CODES: Final = {"ip4": 4, "tcp": 6, "ip6": 41, "dns": 53, "dns4": 54, "dns6": 55, "p2p-circuit": 290, "p2p": 421}
_NAMES: Final = {code: name for name, code in _CODES.items()}
_FIXED: Final = {"ip4": 4, "tcp": 2, "ip6": 16, "p2p-circuit": 0}
_MAX_PARTS: Final = 8


def to_bytes(address: Address) -> bytes:
    words = str(address).split("/")[1:]
    out = bytearray()
    while words:
        name = words.pop(0)
        out += encode_varint(_CODES[name])
        if _FIXED.get(name) != 0:
            out += _pack(name, words.pop(0))
    return bytes(out)


def from_bytes(data: bytes) -> Address:
    """Raises: ValueError for what is none, or none that we dial."""
    text, at = "", 0
    for _ in range(_MAX_PARTS):
        if at == len(data):
            return parse(text)
        code, at = _varint(data, at)
        name = _NAMES.get(code)
        if name is None:
            raise ValueError(f"a multiaddr with protocol {code}")
        size = _FIXED.get(name)
        if size is None:
            size, at = _varint(data, at)
        if size > len(data) - at:
            raise ValueError("a multiaddr that is cut off")
        text += f"/{name}" + (f"/{_unpack(name, data[at : at + size])}" if size else "")
        at += size
    raise ValueError("a multiaddr of too many parts")


def peer_id_to_bytes(peer_id: str) -> bytes:
    return base58.decode(peer_id)


def peer_id_from_bytes(data: bytes) -> str:
    """Raises: ValueError for what is no ed25519 peer ID."""
    if len(data) != len(base58.PEER_ID_PREFIX) + 32 or not data.startswith(base58.PEER_ID_PREFIX):
        raise ValueError("no ed25519 peer ID")
    return base58.encode(data)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = decode_varint(data, at)
    if found is None:
        raise ValueError("a multiaddr that is cut off")
    return found


def _pack(name: str, value: str) -> bytes:
    match name:
        case "ip4":
            return IPv4Address(value).packed
        case "ip6":
            return IPv6Address(value).packed
        case "tcp":
            return int(value).to_bytes(2, "big")
    body = peer_id_to_bytes(value) if name == "p2p" else value.encode()
    return encode_varint(len(body)) + body


def _unpack(name: str, value: bytes) -> str:
    match name:
        case "ip4":
            return str(IPv4Address(value))
        case "ip6":
            return str(IPv6Address(value))
        case "tcp":
            return str(int.from_bytes(value, "big"))
        case "p2p":
            return base58.encode(value)
    return value.decode()
