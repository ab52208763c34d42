"""The node's identity: one ed25519 key, made on the first start, the same peer ID for ever.

The peer ID is libp2p's: base58btc of the identity multihash of the protobuf-encoded public key
(libp2p specification, peer-ids). It is computed here so that an agent without P2P need not load libp2p.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED_SIZE = 32
# multihash: identity (0x00), 36 bytes; protobuf PublicKey: type = Ed25519 (1), data = 32 bytes.
_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


class IdentityError(Exception):
    """The identity key cannot be read or made; the message says why and what to do."""


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """An ed25519 key pair. `seed` is secret: it never leaves the machine and is never printed."""

    seed: bytes

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)


def peer_id_of(public_key: bytes) -> str:
    """The peer ID of a raw ed25519 public key."""
    return base58.b58encode(_PREFIX + public_key).decode()


def public_key_of(peer_id: str) -> bytes:
    """The raw ed25519 public key inside a peer ID. Raises: ValueError."""
    raw = base58.b58decode(peer_id)
    if len(raw) != len(_PREFIX) + 32 or not raw.startswith(_PREFIX):
        raise ValueError(f"{peer_id} is not an ed25519 peer ID")
    return raw[len(_PREFIX) :]


def load_identity(file: Path) -> Identity:
    """Read the key, or make it: written whole under another name first, mode 0600.

    Raises: IdentityError when the file is damaged or can be read by others.
    """
    try:
        seed = file.read_bytes()
    except FileNotFoundError:
        return _create(file)
    if len(seed) != SEED_SIZE:
        raise IdentityError(
            f"{file} is damaged ({len(seed)} bytes, not {SEED_SIZE}); restore it, or remove it to become a new node"
        )
    if file.stat().st_mode & 0o077:
        raise IdentityError(f"{file} can be read by other users; run: chmod 600 {file}")
    return Identity(seed)


def _create(file: Path) -> Identity:
    identity = Identity(Ed25519PrivateKey.generate().private_bytes_raw())
    write_secret(file, identity.seed)
    return identity


def write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all, durable when this returns."""
    scratch = file.with_name(f".{file.name}.tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    scratch.replace(file)
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
