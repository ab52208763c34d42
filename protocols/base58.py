"""Base58 as peer IDs are written: no characters that look alike, nothing that a chat would break a word at.

A peer ID is libp2p's: base58btc of the identity multihash of the protobuf-encoded public key (libp2p specification,
peer-ids). It is computed here so that an agent without P2P need not load libp2p.
"""

from __future__ import annotations

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUE = {character: value for value, character in enumerate(ALPHABET)}
MAX_TEXT = 4096


def encode(data: bytes) -> str:
    """As text; a byte is some 1.37 characters."""
    number = int.from_bytes(data, "big")
    text = ""
    while number:
        number, rest = divmod(number, 58)
        text = ALPHABET[rest] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def decode(text: str) -> bytes:
    """The bytes of at most `MAX_TEXT` characters. Raises: ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters are more than base58 text has here")
    number = 0
    for character in text:
        if character not in _VALUE:
            raise ValueError(f"{character!r} is not a base58 character")
        number = number * 58 + _VALUE[character]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


# multihash: identity (0x00), 36 bytes; protobuf PublicKey: type = Ed25519 (1), data = 32 bytes.
PEER_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def peer_id_of(public_key: bytes) -> str:
    """The peer ID of a raw ed25519 public key."""
    return encode(PEER_ID_PREFIX + public_key)


def public_key_of(peer_id: str) -> bytes:
    """The raw ed25519 public key inside a peer ID. Raises: ValueError."""
    raw = decode(peer_id)
    if len(raw) != len(PEER_ID_PREFIX) + 32 or not raw.startswith(PEER_ID_PREFIX):
        raise ValueError(f"{peer_id[:64]!r} is not an ed25519 peer ID")
    return raw[len(PEER_ID_PREFIX) :]
