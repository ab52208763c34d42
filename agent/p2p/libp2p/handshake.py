"""The Noise handshake: libp2p's code on our pipe. It ends with a proven peer ID and two keys.

Whatever a far side sends, the outcome is a `SecureChannel` or `UpgradeFailed`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX
from multiaddr.multiaddr import Multiaddr
from nacl.signing import SigningKey

from ..host import PeerId
from .noise import CipherKeys, SecureChannel
from .pipe import Pipe, PipeBroken

# What it says of hostile bytes, at levels from debug to error, is said here in one line.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)

NOISE: Final = "/noise"
_MAX_HANDSHAKE: Final = 4096
"""Bytes of one handshake message; honest ones have a few hundred."""
_FIRST_MESSAGE: Final = 2 + 32
"""Bytes of the initiator's first message: its length, and a key that is made for this handshake."""


class UpgradeFailed(Exception):
    """The connection cannot be made safe; the message says why."""


class NotAdmitted(UpgradeFailed):
    """The peer proved who it is, and then hung up."""


class _GivesWay(Exception):
    """Both ends are initiators, and the far side stays one."""


@dataclass(frozen=True, slots=True, repr=False)
class NoiseIdentity:
    """Who we are to others: the ed25519 key that is the peer ID, and a noise key that lasts as long as the process."""

    keys: KeyPair
    noise_key: PrivateKey
    peer_id: PeerId

    @classmethod
    def from_seed(cls, seed: bytes) -> NoiseIdentity:
        """`seed`: the 32 bytes of an ed25519 private key."""
        private = Ed25519PrivateKey(SigningKey(seed))
        keys = KeyPair(private, private.get_public_key())
        return cls(keys, new_noise_keys().private_key, str(ID.from_pubkey(keys.public_key)))


class HandshakeConnection(IRawConnection):
    """What libp2p's handshake reads and writes. It keeps what comes after the last message.

    TCP makes one connection of two that are dialled at the same time from the ports that they are dialled at: both
    ends then are initiators. An answer is never as short as a first message; when one comes, the initiator with the
    higher key stays, and the other one gives way.
    """

    def __init__(self, pipe: Pipe, held: bytes, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.held = held
        self._pipe = pipe
        self._first = b""

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_HANDSHAKE:
            raise UpgradeFailed(f"a handshake message of {n} bytes")
        if self._first:
            await self._settle_tie()
        await self._fill(n)
        data, self.held = self.held[:n], self.held[n:]
        return data

    async def write(self, data: bytes) -> None:
        if self.is_initiator and not self._first:
            self._first = bytes(data)
        await self._pipe.send(data)

    async def _settle_tie(self) -> None:
        """Raises: _GivesWay."""
        ours, self._first = self._first, b""
        await self._fill(2)
        if len(ours) != _FIRST_MESSAGE or self.held[:2] != ours[:2]:
            return
        await self._fill(_FIRST_MESSAGE)
        theirs = self.held[:_FIRST_MESSAGE]
        if theirs == ours:
            raise UpgradeFailed("the far side repeats what we say")
        if theirs > ours:
            raise _GivesWay
        self.held = self.held[_FIRST_MESSAGE:]

    async def _fill(self, n: int) -> None:
        while len(self.held) < n:
            data = await self._pipe.receive()
            if not data:
                raise UpgradeFailed("the peer hung up during the handshake")
            self.held += data

    async def close(self) -> None:
        self._pipe.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.UNKNOWN


async def shake_hands(
    pipe: Pipe, identity: NoiseIdentity, expected: PeerId | None, *, client: bool, held: bytes
) -> tuple[PeerId, SecureChannel, bool]:
    """Prove both peer IDs; `expected` is the one that must answer, None for anybody. The `client` speaks first.

    Return the peer, the channel, and whether we are the client: not always, where both ends were.

    Raises: UpgradeFailed, also when another peer than the expected one answers; PipeBroken.
    """
    connection = HandshakeConnection(pipe, held, is_initiator=client)
    pattern = PatternXX(ID.from_pubkey(identity.keys.public_key), identity.keys.private_key, identity.noise_key)
    inbound = pattern.handshake_inbound
    try:
        try:
            session: Any = await (pattern.handshake_outbound(connection, None) if client else inbound(connection))
        except _GivesWay:
            client = False
            connection = HandshakeConnection(pipe, connection.held, is_initiator=False)
            session = await inbound(connection)
        peer_id = _proven(session.get_remote_peer())
        noise = session.conn.noise_state.noise_protocol  # see selftest.INSIDES
        keys = CipherKeys(noise.cipher_state_encrypt.k, noise.cipher_state_decrypt.k)
    except (UpgradeFailed, PipeBroken):
        raise
    except Exception as error:
        # Hostile bytes reach libraries that raise whatever they please.
        raise UpgradeFailed(f"the handshake failed: {error or type(error).__name__}") from error
    if expected not in (None, peer_id):
        raise UpgradeFailed(f"another peer answers there: {peer_id}")
    return peer_id, SecureChannel(pipe, keys, connection.held), client


def _proven(peer: ID) -> PeerId:
    """An ed25519 peer ID as text. Raises: UpgradeFailed for other kinds of key."""
    if not isinstance(peer.extract_public_key(), Ed25519PublicKey):
        raise UpgradeFailed(f"{peer} has no ed25519 key")
    return str(peer)
