"""The node's identity: one ed25519 key, made on the first start, the same peer ID for ever."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..protocols.base58 import peer_id_of

SEED_SIZE = 32


class IdentityError(Exception):
    """The identity key cannot be read or made; the message says why and what to do."""


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """An ed25519 key pair. `seed` is secret: it never leaves the machine and is never printed."""

    seed: bytes

    @property
    def peer_id(self) -> str:
        return peer_id_of(Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())


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
