"""Connections of their own for images: agreed on a stream to the peer, dialled beside it, and TLS with that peer alone.

The stream has proved the peer and what it may do; over it both ends tell the certificates that they use for this one
connection. Its end, by whatever ends it, is the connection's.
"""

from __future__ import annotations

import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

import msgspec
import trio

from ...protocols.blob import BlobAnswer, BlobRequest, BulkOffer
from ...protocols.errors import TwinshareError
from ..images.bulk import BulkLine, NoBulk, answer_questions
from ..images.peer_serve import IDLE, SharedDisk
from ..p2p.expected_sockets import ExpectedSocket
from ..p2p.host import PeerId, Stream
from ..p2p.tls import TlsIdentity, shake_hands
from ..socket_threads import run_on_socket

OPENING: Final = 5.0
"""Seconds until the connection is there and both ends are proven, or is not worth waiting for."""
MAX_SERVED, MAX_SERVED_OF_PEER = 16, 4
"""Connections that this node sends images on at once."""
_handshakes = trio.CapacityLimiter(8)
_threads = trio.CapacityLimiter(MAX_SERVED)

Ask: TypeAlias = Callable[[BlobRequest], Awaitable[tuple[BlobAnswer, Stream]]]
Offer: TypeAlias = Callable[[BulkOffer], Awaitable[None]]
Expect: TypeAlias = Callable[[PeerId, str], AbstractContextManager[ExpectedSocket]]
Dial: TypeAlias = Callable[[PeerId, str, int], Awaitable[socket.socket]]
"""`Host.expect_socket` and `Host.dial_socket`."""


@asynccontextmanager
async def open_bulk(dial: Dial, ask: Ask, request: BlobRequest) -> AsyncIterator[BulkLine]:
    """Open a connection for an image's chunks to the peer of the stream that `ask` opens. Raises: NoBulk."""
    identity = await trio.to_thread.run_sync(TlsIdentity.make)
    try:
        answer, stream = await ask(msgspec.structs.replace(request, certificate=identity.certificate))
    except TwinshareError as error:
        raise NoBulk(error.message) from None
    try:
        with await _connect(dial, stream.peer_id, answer.bulk, identity) as tls:
            yield BulkLine(tls, stream)
    finally:
        await trio.aclose_forcefully(stream)


async def _connect(dial: Dial, peer_id: PeerId, offer: BulkOffer | None, identity: TlsIdentity) -> socket.socket:
    if offer is None:
        raise NoBulk("the peer offers none")
    with trio.move_on_after(OPENING):
        try:
            sock = await dial(peer_id, offer.ticket, offer.port)
            return await _secured(sock, identity, offer.certificate, server=False)
        except (TwinshareError, OSError) as error:
            raise NoBulk(str(error)) from None
    raise NoBulk(f"it was not there within {OPENING:g} s")


async def _secured(
    sock: socket.socket, identity: TlsIdentity, far_certificate: bytes, *, server: bool
) -> socket.socket:
    """The socket, which is taken over, with TLS. Raises: OSError."""
    with sock:
        sock.settimeout(OPENING)
        tls = identity.wrap(sock, far_certificate, server=server)
    try:
        await run_on_socket(tls, partial(shake_hands, tls, far_certificate), limiter=_handshakes)
    except BaseException:
        tls.close()
        raise
    return tls


class BulkLines:
    """The end that has the image."""

    def __init__(self, expect: Expect) -> None:
        self._expect = expect
        self._open: Counter[PeerId] = Counter()

    def _has_room(self, peer: PeerId) -> bool:
        """Whether this peer may have one more."""
        return self._open[peer] < MAX_SERVED_OF_PEER and self._open.total() < MAX_SERVED

    def count(self, peer: PeerId) -> tuple[int, int]:
        """How many are open: of the peer, and in all."""
        return self._open[peer], self._open.total()

    async def serve(self, stream: Stream, disk: SharedDisk, certificate: bytes, offer: Offer) -> bool:
        """Offer a connection, and send the chunks that are asked for on it; False when there can be none.

        Raises: PeerMisbehaved, OSError, trio.TooSlowError, what `offer` raises.
        """
        peer, ticket = stream.peer_id, secrets.token_hex(32)
        if not self._has_room(peer):
            return False
        self._open[peer] += 1
        try:
            with self._expect(peer, ticket) as expected:
                if not expected.port:
                    return False
                identity = await trio.to_thread.run_sync(TlsIdentity.make)
                await offer(BulkOffer(ticket=ticket, port=expected.port, certificate=identity.certificate))
                with trio.fail_after(OPENING):
                    tls = await _secured(await expected.take(), identity, certificate, server=True)
                with tls:
                    await BulkLine(tls, stream).run(partial(answer_questions, disk=disk, within=IDLE), _threads)
        finally:
            self._open -= Counter([peer])
        return True
