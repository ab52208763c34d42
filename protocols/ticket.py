"""Tickets: what lets a stranger join, short enough for a chat. The secret inside never travels; both sides prove it.

A ticket is base58 of: version, the inviter's public key, an id, the secret, expiry, addresses, checksum.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import zlib
from dataclasses import dataclass
from typing import Literal

from . import base58
from .errors import InvalidRequest

VERSION = 1
ID_SIZE = 6
SECRET_SIZE = 16
NONCE_SIZE = 16
MAX_ADDRESSES = 4
MAX_TEXT = 1024
_KEY_SIZE = 32
_HEAD_SIZE = 1 + _KEY_SIZE + ID_SIZE + SECRET_SIZE + 4
_TCP = re.compile(r"/ip([46])/([0-9a-fA-F.:]+)/tcp/([0-9]{1,5})")

Side = Literal["inviter", "joiner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketContent:
    """`expires` in seconds of the epoch; `addresses` are the inviter's, without `/p2p/…`."""

    inviter: str
    id: bytes
    secret: bytes
    expires: int
    addresses: tuple[str, ...]

    def proof(self, side: Side, joiner: str, inviter_nonce: bytes, joiner_nonce: bytes) -> bytes:
        """What `side` sends to show that it knows the secret, good for these two peers and this once."""
        parts = [
            b"twinshare join 1",
            side.encode(),
            self.inviter.encode(),
            joiner.encode(),
            inviter_nonce,
            joiner_nonce,
        ]
        message = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
        return hmac.digest(self.secret, message, hashlib.sha256)


def encode_ticket(ticket: TicketContent) -> str:
    """The text to hand over; it keeps the first `MAX_ADDRESSES` addresses."""
    addresses = b"".join(_pack_address(address) for address in ticket.addresses[:MAX_ADDRESSES])
    head = bytes([VERSION]) + base58.public_key_of(ticket.inviter) + ticket.id + ticket.secret
    body = head + ticket.expires.to_bytes(4, "big") + addresses
    return base58.encode(body + zlib.crc32(body).to_bytes(4, "big"))


def decode_ticket(text: str) -> TicketContent:
    """Raises: InvalidRequest when the text is no ticket, or not the whole of one."""
    text = "".join(text.split())
    try:
        if len(text) > MAX_TEXT:
            raise ValueError("it is too long")
        data = base58.decode(text)
        body, checksum = data[:-4], data[-4:]
        if len(body) < _HEAD_SIZE or zlib.crc32(body).to_bytes(4, "big") != checksum:
            raise ValueError("a part is missing or a character is wrong")
        if body[0] != VERSION:
            raise ValueError(f"it has version {body[0]}, this twinshare knows version {VERSION}")
        return _unpack(body)
    except ValueError as error:
        raise InvalidRequest(f"this is no ticket: {error}; copy it again, whole", path="ticket") from None


def _unpack(body: bytes) -> TicketContent:
    key, rest = body[1 : 1 + _KEY_SIZE], body[1 + _KEY_SIZE :]
    addresses: list[str] = []
    packed = body[_HEAD_SIZE:]
    while packed:
        address, packed = _unpack_address(packed)
        addresses.append(address)
    return TicketContent(
        inviter=base58.peer_id_of(key),
        id=rest[:ID_SIZE],
        secret=rest[ID_SIZE : ID_SIZE + SECRET_SIZE],
        expires=int.from_bytes(rest[ID_SIZE + SECRET_SIZE : ID_SIZE + SECRET_SIZE + 4], "big"),
        addresses=tuple(addresses),
    )


def _pack_address(address: str) -> bytes:
    """TCP over IP in 7 or 19 bytes; anything else as text."""
    if match := _TCP.fullmatch(address):
        try:
            ip, port = ipaddress.ip_address(match[2]), int(match[3])
            if str(ip) == match[2]:
                return bytes([ip.version]) + ip.packed + port.to_bytes(2, "big")
        except (ValueError, OverflowError):
            pass
    text = address.encode()[:255]
    return bytes([0, len(text)]) + text


def _unpack_address(packed: bytes) -> tuple[str, bytes]:
    """The first address, and what follows it. Raises: ValueError."""
    kind, rest = packed[0], packed[1:]
    if kind == 0 and rest and len(rest) > rest[0]:
        return rest[1 : 1 + rest[0]].decode(), rest[1 + rest[0] :]
    size = {4: 4, 6: 16}.get(kind)
    if size is None or len(rest) < size + 2:
        raise ValueError("one of its addresses is damaged")
    port = int.from_bytes(rest[size : size + 2], "big")
    return f"/ip{kind}/{ipaddress.ip_address(rest[:size])}/tcp/{port}", rest[size + 2 :]
