"""The relay's part: members reserve a reservation here, others reach them through us. Every circuit is bounded.

A relay sees sealed bytes only: the two ends prove each other's keys through it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import (
    CONNECTION_FAILED,
    MALFORMED_MESSAGE,
    NO_RESERVATION,
    OK,
    PERMISSION_DENIED,
    RESOURCE_LIMIT_EXCEEDED,
    HopMessage,
    Limit,
    Reservation,
    StopMessage,
)
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as PbPeer

from .....protocols.errors import TwinshareError
from ....streams import carry
from ...host import DIAL_DEADLINE, PathKind, PeerId, Stream
from ..listener import Listeners
from ..multiaddr_bytes import peer_id_from_bytes, peer_id_to_bytes, to_bytes
from ..swarm import Swarm
from ..varint import BadMessage, MessageReader, write_message
from .circuit import ANSWER_TIME, MAX_MESSAGE, STOP, ask

log = structlog.get_logger(__name__)

TIME_TO_LIVE: Final = 3600.0
"""Seconds that a reservation lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopLimits:
    """Bytes in each direction and seconds of one circuit; circuits in all and of one member."""

    reservations: int = 256
    circuits: int = 64
    circuits_each: int = 8
    data: int = 1 << 30
    duration: float = 3600.0


class Hop:
    """Serves the hop protocol."""

    def __init__(self, swarm: Swarm, listeners: Listeners, limits: HopLimits | None = None) -> None:
        self._swarm, self._listeners = swarm, listeners
        self._limits = limits or HopLimits()
        self._reservations: dict[PeerId, float] = {}  # until when
        self._circuits: list[PeerId] = []  # both ends of each

    @property
    def circuits(self) -> int:
        return len(self._circuits) // 2

    async def handle(self, stream: Stream) -> None:
        reader = MessageReader(stream, most=MAX_MESSAGE)
        question = None
        try:
            with trio.move_on_after(ANSWER_TIME):
                question = await reader.read(HopMessage())
            if question is not None and self._direct(stream):
                await self._answer(stream, question, bytes(reader.rest))
        except BadMessage:
            await _say(stream, MALFORMED_MESSAGE)

    async def _answer(self, stream: Stream, question: HopMessage, ahead: bytes) -> None:
        """Raises: BadMessage."""
        if question.HasField("type") and question.type == HopMessage.RESERVE:
            await self._reserve(stream)
            return
        if question.type != HopMessage.CONNECT:
            raise BadMessage("neither RESERVE nor CONNECT")
        try:
            target = peer_id_from_bytes(question.peer.id)
        except ValueError as error:
            raise BadMessage(str(error)) from error
        status = self._may_connect(stream.peer_id, target)
        if status != OK:
            await _say(stream, status)
            return
        ends = (stream.peer_id, target)
        self._circuits += ends
        try:
            with trio.move_on_after(self._limits.duration):
                await self._carry(stream, target, ahead)
        finally:
            for end in ends:
                self._circuits.remove(end)

    def _direct(self, stream: Stream) -> bool:
        """Circuits over circuits would multiply the traffic."""
        live = self._swarm.carrier(stream)
        return live is not None and live.info.path is PathKind.DIRECT

    async def _reserve(self, stream: Stream) -> None:
        now = trio.current_time()
        self._reservations = {peer: until for peer, until in self._reservations.items() if until > now}
        if len(self._reservations) >= self._limits.reservations and stream.peer_id not in self._reservations:
            await _say(stream, RESOURCE_LIMIT_EXCEEDED)
            return
        self._reservations[stream.peer_id] = now + TIME_TO_LIVE
        addresses = [to_bytes(address) for address in self._listeners.direct_addresses]
        reservation = Reservation(expire=int(time.time() + TIME_TO_LIVE), addrs=addresses)
        await _say(stream, OK, reservation=reservation, limit=self._limit())

    def _may_connect(self, source: PeerId, target: PeerId) -> Any:
        """The status to answer."""
        live = self._swarm.peers.best(target)
        if (
            self._reservations.get(target, 0.0) < trio.current_time()
            or live is None
            or live.info.path is not PathKind.DIRECT
        ):
            return NO_RESERVATION
        if target == source:
            return PERMISSION_DENIED
        most_each = max(map(self._circuits.count, (source, target)))
        if self.circuits >= self._limits.circuits or most_each >= self._limits.circuits_each:
            return RESOURCE_LIMIT_EXCEEDED
        return OK

    async def _carry(self, stream: Stream, target: PeerId, ahead: bytes) -> None:
        question = StopMessage(
            type=StopMessage.CONNECT, peer=PbPeer(id=peer_id_to_bytes(stream.peer_id)), limit=self._limit()
        )
        try:
            onward = await self._swarm.open_stream(self._swarm.connected(target), STOP, DIAL_DEADLINE)
        except TwinshareError as error:
            log.debug("no circuit", source=stream.peer_id, target=target, reason=str(error))
            await _say(stream, CONNECTION_FAILED)
            return
        try:
            answer, back = await ask(onward, question, StopMessage())
            if answer.status != OK:
                await _say(stream, CONNECTION_FAILED)
                return
            await _say(stream, OK, limit=self._limit())
            await onward.send_all(ahead)
            await stream.send_all(back)
            if not await carry(stream, onward, limit=self._limits.data):
                stream.reset()
        except BadMessage:
            await _say(stream, CONNECTION_FAILED)
        finally:
            onward.reset()

    def _limit(self) -> Limit:
        return Limit(duration=int(self._limits.duration), data=self._limits.data)


async def _say(stream: Stream, status: Any, **more: Any) -> None:
    await write_message(stream, HopMessage(type=HopMessage.STATUS, status=status, **more))
