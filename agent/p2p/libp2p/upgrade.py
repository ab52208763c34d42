"""From a bare pipe to a connection that carries streams: noise, the gate, yamux. Nothing else is offered,
but a bare socket to whoever names a ticket that was given to it (`accept`).

The gate stands behind the handshake, which has proved the peer ID, and before the muxer: a stranger gets no stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from ..expected_sockets import BULK, ExpectedSockets
from ..host import Admission, Direction, Gate, PeerId
from .handshake import NOISE, NoiseIdentity, NotAdmitted, UpgradeFailed, shake_hands
from .multistream import NegotiationFailed, NotSpoken, answer, select
from .noise import SecureChannel
from .pipe import Pipe, PipeBroken, SocketPipe
from .settings import HostSettings
from .yamux.connection import YamuxConnection

YAMUX: Final = "/yamux/1.0.0"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """`admission` is what the gate said when it was asked."""

    muxer: YamuxConnection
    admission: Admission


class Upgrader:
    """`gate` is asked for each peer that proves who it is."""

    def __init__(self, identity: NoiseIdentity, gate: Gate, settings: HostSettings) -> None:
        self._identity = identity
        self.gate = gate
        self._settings = settings
        self.expected = ExpectedSockets()

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    async def accept(self, pipe: SocketPipe) -> Upgraded | None:
        """Upgrade a connection that somebody has dialled; None when it was an expected socket, and has its owner.

        Raises: UpgradeFailed; the pipe is closed then.
        """
        async with _closing_on_failure(pipe, self._settings.upgrade_deadline):
            protocol, held = await answer(pipe.receive, pipe.send, self._speaks)
            if protocol == NOISE:
                return await self._secure(pipe, Direction.INBOUND, None, held, client=False)
            expected = self.expected.claim(protocol.removeprefix(BULK))
            if expected is None or held:
                raise UpgradeFailed("a ticket was named twice, or the peer did not wait for the answer")
            expected.give(pipe.detach())
            return None

    def _speaks(self, protocol: str) -> bool:
        return protocol == NOISE or (protocol.startswith(BULK) and self.expected.knows(protocol.removeprefix(BULK)))

    async def upgrade(
        self, pipe: Pipe, direction: Direction, expected: PeerId | None, *, client: bool | None = None
    ) -> Upgraded:
        """`expected`: the peer that must be at the other end, None for any. The pipe is closed when this fails.

        `client`: whether we speak first, as the dialer does unless it is said; of two that dial each other at once,
        one must. Raises: UpgradeFailed.
        """
        first = direction is Direction.OUTBOUND if client is None else client
        async with _closing_on_failure(pipe, self._settings.upgrade_deadline):
            held = await _agree(pipe, NOISE, client=first)
            return await self._secure(pipe, direction, expected, held, client=first)

    async def _secure(
        self, pipe: Pipe, direction: Direction, expected: PeerId | None, held: bytes, *, client: bool
    ) -> Upgraded:
        peer_id, channel, client = await shake_hands(pipe, self._identity, expected, client=client, held=held)
        admission = self.gate(peer_id, direction)
        if admission is Admission.REFUSED or peer_id == self._identity.peer_id:
            raise UpgradeFailed(f"{peer_id} is not admitted here")
        try:
            channel.put_back(await _agree(channel, YAMUX, client=client))
        except (PipeBroken, NegotiationFailed) as error:
            raise NotAdmitted(f"the peer hung up after the handshake: it may not admit us ({error})") from error
        muxer = YamuxConnection(
            channel,
            peer_id=peer_id,
            client=client,
            peer_timeout=self._settings.peer_timeout,
            limits=self._settings.session,
        )
        return Upgraded(muxer, admission)


@asynccontextmanager
async def _closing_on_failure(pipe: Pipe, deadline: float) -> AsyncIterator[None]:
    """Raises: UpgradeFailed for what the far side did, or did not within `deadline` seconds."""
    try:
        with trio.fail_after(deadline):
            yield
    except BaseException as error:
        pipe.close()
        if isinstance(error, trio.TooSlowError):
            raise UpgradeFailed("the handshake took too long") from error
        if isinstance(error, PipeBroken | NegotiationFailed):
            raise UpgradeFailed(str(error)) from error
        if isinstance(error, NotSpoken):
            raise UpgradeFailed(f"the peer does not speak {error}") from error
        raise


async def _agree(ends: Pipe | SecureChannel, protocol: str, *, client: bool) -> bytes:
    if client:
        return await select(ends.receive, ends.send, protocol)
    _, rest = await answer(ends.receive, ends.send, protocol.__eq__)
    return rest
