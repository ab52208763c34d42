"""The node's identity: one ed25519 key, made on the first start, the same peer ID for ever."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..protocols.base58 import peer_id_of
from .files import atomic_write, disk_errors_named

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
    """Return the key in `file`; a new one is written, mode 0600, where there is none.

    Raises: IdentityError when the file is damaged or can be read by others; InsufficientResources.
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
    with disk_errors_named("the key of the node"):
        atomic_write(file, identity.seed)
    return identity
