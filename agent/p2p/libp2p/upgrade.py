"""From a bare pipe to a connection that carries streams: noise, the gate, yamux. Nothing else is ever offered.

The gate stands behind the handshake, which has proved the peer ID, and before the muxer: a stranger gets no stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from ..host import Admission, Direction, Gate, PeerId
from .handshake import NOISE, NoiseIdentity, NotAdmitted, UpgradeFailed, shake_hands
from .multistream import NegotiationFailed, NotSpoken, answer, select
from .noise import SecureChannel
from .pipe import Pipe, PipeBroken
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

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    async def upgrade(
        self, pipe: Pipe, direction: Direction, expected: PeerId | None, *, client: bool | None = None
    ) -> Upgraded:
        """`expected`: the peer that must be at the other end, None for any. The pipe is closed when this fails.

        `client`: whether we speak first, as the dialer does unless it is said; of two that dial each other at once,
        one must. Raises: UpgradeFailed.
        """
        first = direction is Direction.OUTBOUND if client is None else client
        try:
            with trio.fail_after(self._settings.upgrade_deadline):
                return await self._upgrade(pipe, direction, expected, first)
        except BaseException as error:
            pipe.close()
            if isinstance(error, trio.TooSlowError):
                raise UpgradeFailed("the handshake took too long") from error
            if isinstance(error, PipeBroken | NegotiationFailed):
                raise UpgradeFailed(str(error)) from error
            if isinstance(error, NotSpoken):
                raise UpgradeFailed(f"the peer does not speak {error}") from error
            raise

    async def _upgrade(self, pipe: Pipe, direction: Direction, expected: PeerId | None, client: bool) -> Upgraded:
        held = await _agree(pipe, NOISE, client=client)
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


async def _agree(ends: Pipe | SecureChannel, protocol: str, *, client: bool) -> bytes:
    if client:
        return await select(ends.receive, ends.send, protocol)
    _, rest = await answer(ends.receive, ends.send, protocol.__eq__)
    return rest
