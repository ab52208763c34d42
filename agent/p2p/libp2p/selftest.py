"""Does the libp2p that is installed have the insides that we reach into? Asked by one handshake in memory.

What is public in libp2p is checked by its types. What is not is listed here, so that another version fails with a
sentence that names what it lacks, and not in the middle of somebody's handshake.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

import trio
from libp2p.abc import ISecureConn
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX

from .handshake import HandshakeConnection, NoiseIdentity
from .pacing import UNBOUNDED, BulkRoom

INSIDES: Final[tuple[tuple[str, type], ...]] = (
    ("conn.noise_state.noise_protocol.cipher_state_encrypt.k", bytes),
    ("conn.noise_state.noise_protocol.cipher_state_decrypt.k", bytes),
)
"""From the secure connection that the handshake gives: our framing takes the keys over."""


class LibP2pChanged(Exception):
    """The installed libp2p lacks something that we need; the message names it."""


class _MemoryPipe:
    def __init__(self, out: trio.MemorySendChannel[bytes], into: trio.MemoryReceiveChannel[bytes]) -> None:
        self._out = out
        self._into = into

    async def receive(self) -> bytes:
        return await self._into.receive()

    async def send(self, data: bytes | bytearray) -> None:
        await self._out.send(bytes(data))

    def bulk_room(self) -> BulkRoom:
        return BulkRoom(UNBOUNDED)

    def close(self) -> None:
        self._out.close()


async def check_libp2p() -> None:
    """Raises: LibP2pChanged."""
    sessions: list[ISecureConn] = []
    there, here = trio.open_memory_channel[bytes](8), trio.open_memory_channel[bytes](8)
    identities = [NoiseIdentity.from_seed(bytes([number] * 32)) for number in (1, 2)]
    patterns = [PatternXX(ID.from_string(who.peer_id), who.keys.private_key, who.noise_key) for who in identities]

    async def answer() -> None:
        connection = HandshakeConnection(_MemoryPipe(here[0], there[1]), b"", is_initiator=False)
        sessions.append(await patterns[1].handshake_inbound(connection))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        connection = HandshakeConnection(_MemoryPipe(there[0], here[1]), b"", is_initiator=True)
        sessions.append(await patterns[0].handshake_outbound(connection, ID.from_string(identities[1].peer_id)))
    for session in sessions:
        for path, kind in INSIDES:
            _check(session, path, kind)


def _check(session: ISecureConn, path: str, kind: type) -> None:
    value: object = session
    for name in path.split("."):
        if not hasattr(value, name):
            raise LibP2pChanged(
                f"libp2p {version('libp2p')} has no {type(value).__name__}.{name}, which this version of twinshare "
                "needs; install libp2p 0.8.1"
            )
        value = getattr(value, name)
    if not isinstance(value, kind):
        raise LibP2pChanged(f"libp2p {version('libp2p')}: {path} is {type(value).__name__}, not {kind.__name__}")
