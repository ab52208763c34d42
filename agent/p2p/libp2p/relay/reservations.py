"""Reservations at relays: made at members that we dialled, renewed, published as addresses; dialling through relays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import OK, PERMISSION_DENIED, HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as PbPeer

from .....protocols.errors import TwinshareError, Unsupported
from ...addresses import Address, parse
from ...host import DIAL_DEADLINE, Admission, Direction, PathKind, PeerEvent, PeerId, Stream
from ..dialer import Dialer
from ..handshake import UpgradeFailed
from ..multiaddr_bytes import from_bytes, peer_id_from_bytes, peer_id_to_bytes
from ..peers import Live
from ..swarm import Swarm
from ..upgrade import Upgraded
from ..varint import BadMessage, MessageReader, write_message
from .circuit import ANSWER_TIME, HOP, MAX_MESSAGE, StreamPipe, ask

log = structlog.get_logger(__name__)

WANTED: Final = 2
_LOOK_EVERY: Final = 5.0
_RENEW_AFTER: Final = 900.0
_TRY_AGAIN: Final = 120.0
_MAX_ADDRESSES: Final = 3
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """At `live`, until its connection ends; `renew_at` is on trio's clock."""

    live: Live
    addresses: list[Address]
    renew_at: float


class Reservations:
    """Keeps `WANTED` reservations, and is the far end of circuits that others open to us through them."""

    def __init__(self, swarm: Swarm, dialer: Dialer) -> None:
        self._swarm, self._dialer = swarm, dialer
        self._reservations: dict[PeerId, Reservation] = {}
        self._refused: dict[PeerId, float] = {}  # until when we do not ask again
        self._changed = trio.Event()

    @property
    def addresses(self) -> list[Address]:
        """Where others reach us through relays, without our own peer ID at the end."""
        return [address for reservation in self._reservations.values() for address in reservation.addresses]

    def consider(self, _live: Live) -> None:
        """There is a new connection: perhaps it is one to a relay."""
        self._changed.set()

    async def run(self) -> None:
        """Look at fixed intervals, and when there is a new connection. One that ended takes its reservation along."""
        published: list[Address] = []
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            self._reservations = {
                peer: reservation
                for peer, reservation in self._reservations.items()
                if not reservation.live.muxer.session.over
            }
            self._refused = {peer: until for peer, until in self._refused.items() if until > now}
            for peer, reservation in list(self._reservations.items()):
                if reservation.renew_at <= now:
                    await self.reserve(peer)
            for live in self._candidates():
                if len(self._reservations) < WANTED:
                    await self.reserve(live.info.peer_id)
            if self.addresses != published:
                published = self.addresses
                self._swarm.peers.events.publish(PeerEvent(peer_id=self._swarm.peer_id, path=None))
            with trio.move_on_after(_LOOK_EVERY):
                await self._changed.wait()

    async def reserve(self, peer: PeerId) -> bool:
        """Ask a connected peer for a reservation; whether it gave one."""
        reservation = await self._request(peer)
        if reservation is None:
            self._reservations.pop(peer, None)
            self._refused[peer] = trio.current_time() + _TRY_AGAIN
            return False
        self._reservations[peer] = reservation
        return True

    async def dial(self, address: Address, peer_id: PeerId) -> Upgraded:
        """Reach a peer through a relay. Raises: UpgradeFailed."""
        relay = address.relay
        if relay is None or relay == self._swarm.peer_id:
            raise UpgradeFailed("we are that relay")
        try:
            await self._dialer.connect(relay, [str(replace(address, relay=None, peer_id=relay))], DIAL_DEADLINE)
            stream = await self._swarm.open_stream(self._swarm.connected(relay), HOP, DIAL_DEADLINE)
        except TwinshareError as error:
            raise UpgradeFailed(f"the relay cannot be used: {error.message}") from error
        try:
            question = HopMessage(type=HopMessage.CONNECT, peer=PbPeer(id=peer_id_to_bytes(peer_id)))
            answer, held = await ask(stream, question, HopMessage())
            if answer.status != OK:
                raise UpgradeFailed(f"the relay says {_status(answer.status)}")
            pipe = StreamPipe(stream, held, self._swarm.settings.write_timeout)
            return await self._swarm.upgrader.upgrade(pipe, Direction.OUTBOUND, peer_id)
        except (BadMessage, *_BROKEN) as error:
            stream.reset()
            raise UpgradeFailed(f"the relay gave up: {error}") from error
        except BaseException:
            stream.reset()
            raise

    async def handle(self, stream: Stream) -> None:
        """A relay says that somebody wants to talk to us through it."""
        reader = MessageReader(stream, most=MAX_MESSAGE)
        source = None
        with trio.move_on_after(ANSWER_TIME):
            source = await self._understand(reader)
        reservation = self._reservations.get(stream.peer_id)
        if source is None or reservation is None:
            await write_message(stream, StopMessage(type=StopMessage.STATUS, status=PERMISSION_DENIED))
            return
        await write_message(stream, StopMessage(type=StopMessage.STATUS, status=OK))
        try:
            pipe = StreamPipe(stream, bytes(reader.rest), self._swarm.settings.write_timeout)
            upgraded = await self._swarm.upgrader.upgrade(pipe, Direction.INBOUND, source)
            live = self._swarm.adopt(upgraded, reservation.addresses[0], Direction.INBOUND)
        except (UpgradeFailed, TwinshareError) as error:
            log.debug("circuit refused", relay=stream.peer_id, source=source, reason=str(error))
            return
        await live.muxer.closed.wait()

    async def _understand(self, reader: MessageReader) -> PeerId | None:
        try:
            message = await reader.read(StopMessage())
            if message is None or not message.HasField("type") or message.type != StopMessage.CONNECT:
                return None
            return peer_id_from_bytes(message.peer.id)
        except (BadMessage, ValueError):
            return None

    def _candidates(self) -> list[Live]:
        """Members that we dialled directly, and so others may too; not on this machine, where nobody needs a relay."""
        return [
            live
            for live in self._swarm.peers
            if live.info.direction is Direction.OUTBOUND
            and live.info.path is PathKind.DIRECT
            and live.info.peer_id not in self._reservations
            and live.info.peer_id not in self._refused
            and not parse(live.info.address).loopback
            and self._swarm.admission(live) is Admission.MEMBER
        ]

    async def _request(self, peer: PeerId) -> Reservation | None:
        live = self._swarm.peers.best(peer)
        if live is None or live.info.path is not PathKind.DIRECT:
            return None
        try:
            stream = await self._swarm.open_stream(live, HOP, ANSWER_TIME)
        except Unsupported:
            return None
        except TwinshareError as error:
            log.debug("no reservation at a relay", relay=peer, reason=error.message)
            return None
        try:
            answer, _ = await ask(stream, HopMessage(type=HopMessage.RESERVE), HopMessage())
        except (BadMessage, *_BROKEN):
            return None
        finally:
            stream.reset()
        if answer.status != OK:
            log.debug("no reservation at a relay", relay=peer, reason=_status(answer.status))
            return None
        addresses = _relay_addresses(live, answer)
        return Reservation(live=live, addresses=addresses, renew_at=trio.current_time() + _RENEW_AFTER)


def _relay_addresses(live: Live, answer: HopMessage) -> list[Address]:
    """Where the relay is: as we reached it, and as it says itself."""
    found = {replace(parse(live.info.address), relay=live.info.peer_id, peer_id=None): None}
    for data in answer.reservation.addrs:
        try:
            address = from_bytes(data)
        except ValueError:
            continue
        if address.relay is None and not address.loopback and not address.unspecified:
            found[replace(address, relay=live.info.peer_id, peer_id=None)] = None
    return list(found)[:_MAX_ADDRESSES]


def _status(status: int) -> str:
    try:
        return str(Status.Name(status))  # type: ignore[arg-type]  # any number that a peer sends
    except ValueError:
        return str(status)
