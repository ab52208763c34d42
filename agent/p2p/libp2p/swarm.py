"""The live connections of a host: taken in through the gate, carried, bounded, closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog
import trio

from ....protocols.errors import Overloaded, PeerUnreachable, Unsupported
from ...sockets import network_of
from ..addresses import Address, parse
from ..host import Admission, Connection, Direction, PathKind, PeerId
from .handshake import UpgradeFailed
from .multistream import NegotiationFailed, NotSpoken, select
from .peers import Live, Peers
from .pipe import SocketPipe
from .serving import Serving
from .settings import HostSettings
from .upgrade import Upgraded, Upgrader
from .yamux.session import SessionOver, TooManyStreams
from .yamux.stream import YamuxStream

log = structlog.get_logger(__name__)


SURPLUS_INTERVAL = 0.5
SURPLUS_LOOKS = 120
"""A minute: a session that began on a connection that is given up may be ended by then, too."""


class Swarm:
    """Its tasks live in the nursery. `adopted` gets each new connection, again when its guest becomes a member."""

    def __init__(self, upgrader: Upgrader, settings: HostSettings, nursery: trio.Nursery) -> None:
        self.peers = Peers(upgrader.peer_id)
        self.serving = Serving(settings.negotiation_deadline)
        self.upgrader = upgrader
        self.settings = settings
        self.nursery = nursery
        self._on_connection: list[Callable[[Live], object]] = []
        self.closed = False
        self._guests: set[Live] = set()

    @property
    def peer_id(self) -> PeerId:
        """Return this host's own peer ID."""
        return self.upgrader.peer_id

    def on_connection(self, callback: Callable[[Live], object]) -> None:
        """Call `callback` with each new connection, and again when its peer turns from a guest into a member."""
        self._on_connection.append(callback)

    def connected(self, peer_id: PeerId) -> Live:
        """Raises: PeerUnreachable."""
        live = self.peers.best(peer_id)
        if live is None:
            raise PeerUnreachable(f"there is no connection with {peer_id}", peer=peer_id)
        return live

    def carrier(self, stream: object) -> Live | None:
        """The connection that carries a stream; None when it is over."""
        return next((live for live in self.peers if live.muxer.carries(stream)), None)

    def address_of(self, stream: object) -> Address | None:
        """Return the far address of a stream's connection; None when it is over."""
        live = self.carrier(stream)
        return replace(parse(live.info.address), peer_id=None) if live else None

    async def open_stream(self, live: Live, protocol: str, deadline: float) -> YamuxStream:
        """Raises: PeerUnreachable, Unsupported, Overloaded."""
        peer_id = live.info.peer_id
        try:
            stream = live.muxer.open_stream()
        except SessionOver:
            raise PeerUnreachable(f"the connection with {peer_id} ended: {live.muxer.reason}", peer=peer_id) from None
        except TooManyStreams:
            raise Overloaded(f"too many streams are open to {peer_id}; try again later", peer=peer_id) from None
        try:
            with trio.move_on_after(deadline):
                stream.agree(protocol, await select(stream.receive_some, stream.send_all, protocol))
                return stream
        except NotSpoken:
            stream.reset()
            raise Unsupported(f"{peer_id} does not serve {protocol} to us", peer=peer_id) from None
        except (NegotiationFailed, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            stream.reset()
            raise PeerUnreachable(f"{peer_id} ended the stream: {error}", peer=peer_id) from error
        except BaseException:
            stream.reset()
            raise
        stream.reset()
        raise PeerUnreachable(f"{peer_id} did not answer within {deadline:g} s", peer=peer_id)

    async def arrived(self, pipe: SocketPipe, far: Address) -> None:
        """Somebody dialled us."""
        try:
            upgraded = await self.upgrader.accept(pipe)
            if upgraded is not None:
                self.adopt(upgraded, far, Direction.INBOUND)
        except (UpgradeFailed, PeerUnreachable) as error:
            log.debug("connection refused", address=str(far), reason=str(error))

    def adopt(self, upgraded: Upgraded, address: Address, direction: Direction) -> Live:
        """Carry a connection from now on. Raises: PeerUnreachable when there is no room for it."""
        muxer = upgraded.muxer
        info = Connection(
            peer_id=muxer.peer_id,
            address=str(replace(address, peer_id=muxer.peer_id)),
            direction=direction,
            path=PathKind.RELAYED if address.relay else PathKind.DIRECT,
            since=trio.current_time(),
        )
        live = Live(muxer, info)
        guest = upgraded.admission in {Admission.GUEST, Admission.JOINING}
        if self.closed:
            muxer.give_up()
            raise PeerUnreachable("this host is closed")
        if len(self.peers) >= self.settings.connections or (guest and not self._has_room_for_guest()):
            muxer.give_up()
            raise PeerUnreachable(f"too many connections are open to add one with {muxer.peer_id}")
        if guest:
            muxer.session.max_inbound = self.settings.guest_streams
            self._guests.add(live)
            self.nursery.start_soon(self._watch_guest, live)
        self.peers.add(live)
        self.nursery.start_soon(self._carry, live)
        if self.peers.decides(muxer.peer_id) and self.peers.surplus(muxer.peer_id):
            self.nursery.start_soon(self._close_surplus, muxer.peer_id)
        same = self.peers.of(muxer.peer_id)
        for old in same[: max(0, len(same) - self.settings.connections_each)]:
            self.nursery.start_soon(old.muxer.aclose)
        for callback in self._on_connection:
            callback(live)
        return live

    def _has_room_for_guest(self) -> bool:
        """Return whether one more guest can be taken in; the oldest of the address that has most gives way to it.

        But for those that have named a ticket, for as long as it takes to redeem it, and those that we have dialled.
        """
        if len(self._guests) < self.settings.guests:
            return True
        recent = trio.current_time() - self.settings.join_time
        guests = [live for live in self._guests if live.info.direction is Direction.INBOUND]
        yielding = [
            live for live in guests if self.admission(live) is not Admission.JOINING or live.info.since < recent
        ]
        networks = Counter(_network(live) for live in guests)
        loser = max(yielding, key=lambda live: (networks[_network(live)], -live.info.since), default=None)
        if loser is None:
            return False
        self._guests.discard(loser)
        self.nursery.start_soon(loser.muxer.aclose)
        return True

    async def _close_surplus(self, peer_id: PeerId) -> None:
        """Close all but the best connection with a peer, each when nothing uses it."""
        for _ in range(SURPLUS_LOOKS):
            await trio.sleep(SURPLUS_INTERVAL)
            surplus = self.peers.surplus(peer_id)
            if not surplus:
                return
            await self.close([live for live in surplus if not live.muxer.stream_count])

    def admission(self, live: Live) -> Admission:
        """What the gate says of the peer now."""
        return self.upgrader.gate(live.info.peer_id, live.info.direction)

    async def aclose(self) -> None:
        """Say goodbye to everybody; what comes from now on is refused. Takes a second at most."""
        self.closed = True
        await self.close(list(self.peers))

    async def close(self, lives: Sequence[Live]) -> None:
        """Say goodbye; takes a second at most."""
        async with trio.open_nursery() as nursery:
            for live in lives:
                nursery.start_soon(live.muxer.aclose)

    async def _carry(self, live: Live) -> None:
        try:
            await live.muxer.run(partial(self._accept, live))
        finally:
            self.peers.remove(live)
            self._guests.discard(live)
            log.debug("connection ended", peer=live.info.peer_id, reason=live.muxer.reason)

    def _accept(self, live: Live, stream: YamuxStream) -> None:
        if live in self._guests and self.admission(live) is Admission.MEMBER:
            self._promote(live)
        self.nursery.start_soon(self.serving.take, stream, partial(self.admission, live))

    def _promote(self, live: Live) -> None:
        """A guest has become a member: what is done with each new connection is due now."""
        self._guests.discard(live)
        live.muxer.session.max_inbound = self.settings.session.streams_each_way
        for callback in self._on_connection:
            callback(live)

    async def _watch_guest(self, live: Live) -> None:
        with trio.move_on_after(self.settings.guest_time):
            await live.muxer.closed.wait()
        if self.admission(live) is not Admission.MEMBER:
            await live.muxer.aclose()
        elif live in self._guests and not live.muxer.session.over:
            self._promote(live)


def _network(live: Live) -> str:
    """Return what the share of a connection's far side is counted by."""
    return network_of(parse(live.info.address).host)
