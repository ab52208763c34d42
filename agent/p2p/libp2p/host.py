"""The port's host on libp2p's protocols. The swarm is ours: dialling, listening, streams and their bounds are in here.

Every background task lives in the nursery of `open_host`. Nothing polls, dials or identifies of its own accord.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
import trio
from multiaddr.utils import get_network_addrs

from ....protocols.errors import Overloaded, PeerUnreachable, Unsupported
from ...background import open_background
from ..addresses import Address, expand, parse, parse_all
from ..host import DIAL_DEADLINE, Admission, Connection, Direction, Gate, Handler, Path, PeerEvent, PeerId, Stream
from .dialler import Race, dial_tcp
from .handshake import NoiseIdentity, UpgradeFailed
from .identify import serve_identify
from .listener import Listeners
from .multistream import NegotiationFailed, NotSpoken, select
from .peers import Live, Peers
from .pipe import SocketPipe
from .selftest import check_libp2p
from .serving import Served, Serving
from .settings import HostSettings
from .upgrade import Upgraded, Upgrader
from .yamux.session import SessionOver, TooManyStreams
from .yamux.shell import YamuxStream

log = structlog.get_logger(__name__)


class LibP2pHost:
    """See `Host`. Made by `open_host`."""

    def __init__(
        self,
        identity: NoiseIdentity,
        gate: Gate,
        listeners: Listeners,
        settings: HostSettings,
        nursery: trio.Nursery,
    ) -> None:
        self.gate = gate
        self._identity = identity
        self._listeners = listeners
        self._settings = settings
        self._nursery = nursery
        self._peers = Peers()
        self._serving = Serving(settings.negotiation_deadline)
        self._upgrader = Upgrader(identity, lambda: self.gate, settings)
        self._racing: dict[PeerId, trio.Event] = {}

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        interfaces = [*get_network_addrs(4), *get_network_addrs(6)]
        own = [each for address in self._listeners.addresses for each in expand(address, interfaces)]
        return [str(replace(address, peer_id=self.peer_id)) for address in own]

    @property
    def connections(self) -> Sequence[Connection]:
        return [live.info for live in self._peers]

    @property
    def events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        return self._peers.events

    @property
    def public_key(self) -> bytes:
        """As libp2p's messages carry it."""
        return self._identity.keys.public_key.serialize()

    @property
    def protocols(self) -> list[str]:
        """What members may open."""
        return self._serving.protocols

    def address_of(self, stream: Stream) -> Address | None:
        """Where the far end of a stream is, as we see it; None when its connection is over."""
        live = next((live for live in self._peers if live.muxer.carries(stream)), None)
        return replace(parse(live.info.address), peer_id=None) if live else None

    @property
    def half_open(self) -> int:
        """Connections taken in whose far side has not proved who it is."""
        return self._listeners.half_open

    def path(self, peer_id: PeerId) -> Path | None:
        return self._peers.path(peer_id)

    def serve(self, protocol: str, handler: Handler, *, guests: bool = False) -> None:
        self._serving.add(protocol, Served(handler, guests))

    async def connect(
        self, peer_id: PeerId, addresses: Sequence[str], *, deadline: float = DIAL_DEADLINE
    ) -> Connection:
        targets = [
            address
            for address in parse_all(addresses, most=self._settings.dial_addresses)
            if address.port and address.peer_id in (None, peer_id)
        ]
        race = Race(peer_id, self._dial, self._settings.dial_stagger)
        with trio.move_on_after(deadline):
            while (racing := self._racing.get(peer_id)) is not None:
                await racing.wait()
            if (live := self._peers.best(peer_id)) is not None:
                return live.info
            return await self._race(race, targets)
        raise PeerUnreachable(
            f"{peer_id} did not answer within {deadline:g} s", peer=peer_id, tried=_tried(race, targets)
        )

    async def disconnect(self, peer_id: PeerId) -> None:
        await _close_all(self._peers.of(peer_id))

    async def open_stream(self, peer_id: PeerId, protocol: str, *, deadline: float = DIAL_DEADLINE) -> Stream:
        live = self._connected(peer_id)
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

    async def ping(self, peer_id: PeerId, *, deadline: float = DIAL_DEADLINE) -> float:
        live = self._connected(peer_id)
        with trio.move_on_after(deadline):
            try:
                return await live.muxer.ping()
            except SessionOver:
                raise PeerUnreachable(
                    f"the connection with {peer_id} ended: {live.muxer.reason}", peer=peer_id
                ) from None
        raise PeerUnreachable(f"{peer_id} did not answer within {deadline:g} s", peer=peer_id)

    # -- dialling

    async def _race(self, race: Race, targets: Sequence[Address]) -> Connection:
        """Raises: PeerUnreachable when every address fails."""
        done = self._racing[race.peer_id] = trio.Event()
        try:
            await race.run(targets)
            if race.winner is None:
                tried = _tried(race, targets)
                reasons = "; ".join(f"{address}: {reason}" for address, reason in tried.items())
                sentence = f"cannot reach {race.peer_id}: {reasons or 'no address is known'}"
                raise PeerUnreachable(sentence, tried=tried, refused=race.refused)
            address, upgraded = race.winner
            return self._adopt(upgraded, address, Direction.OUTBOUND)
        except BaseException:
            if race.winner is not None:
                race.winner[1].muxer.give_up()
            raise
        finally:
            del self._racing[race.peer_id]
            done.set()

    async def _dial(self, address: Address, peer_id: PeerId) -> Upgraded:
        if address.relay is not None:
            raise UpgradeFailed("relays are off")
        pipe = await dial_tcp(address, self._settings.patience)
        return await self._upgrader.upgrade(pipe, peer_id)

    # -- connections

    async def arrived(self, pipe: SocketPipe, far: Address) -> None:
        """Somebody dialled us."""
        try:
            upgraded = await self._upgrader.upgrade(pipe, None)
            self._adopt(upgraded, far, Direction.INBOUND)
        except (UpgradeFailed, PeerUnreachable) as error:
            log.debug("connection refused", address=str(far), reason=str(error))

    def _adopt(self, upgraded: Upgraded, address: Address, direction: Direction) -> Connection:
        """Raises: PeerUnreachable when there is no room for it."""
        muxer = upgraded.muxer
        info = Connection(
            peer_id=muxer.peer_id,
            address=str(replace(address, peer_id=muxer.peer_id)),
            direction=direction,
            path=Path.RELAYED if address.relay else Path.DIRECT,
            since=trio.current_time(),
        )
        live = Live(muxer, info)
        guest = upgraded.admission is Admission.GUEST
        if len(self._peers) >= self._settings.connections or (guest and self._guests() >= self._settings.guests):
            muxer.give_up()
            raise PeerUnreachable(f"too many connections are open to add one with {muxer.peer_id}")
        if guest:
            muxer.session.max_inbound = self._settings.guest_streams
            self._nursery.start_soon(self._watch_guest, live)
        self._peers.add(live)
        self._nursery.start_soon(self._carry, live)
        same = self._peers.of(muxer.peer_id)
        for old in same[: max(0, len(same) - self._settings.connections_each)]:
            self._nursery.start_soon(old.muxer.aclose)
        return info

    async def _carry(self, live: Live) -> None:
        try:
            await live.muxer.run(partial(self._accept, live))
        finally:
            self._peers.remove(live)
            log.debug("connection ended", peer=live.info.peer_id, reason=live.muxer.reason)

    def _accept(self, live: Live, stream: YamuxStream) -> None:
        if self._admission(live) is Admission.MEMBER:
            live.muxer.session.max_inbound = self._settings.session.streams_each_way
        self._nursery.start_soon(self._serving.take, stream, partial(self._admission, live))

    def _admission(self, live: Live) -> Admission:
        return self.gate(live.info.peer_id, live.info.direction)

    def _guests(self) -> int:
        return sum(self._admission(live) is not Admission.MEMBER for live in self._peers)

    async def _watch_guest(self, live: Live) -> None:
        with trio.move_on_after(self._settings.guest_time):
            await live.muxer.closed.wait()
        if self._admission(live) is not Admission.MEMBER:
            await live.muxer.aclose()

    def _connected(self, peer_id: PeerId) -> Live:
        live = self._peers.best(peer_id)
        if live is None:
            raise PeerUnreachable(f"there is no connection with {peer_id}", peer=peer_id)
        return live

    async def aclose(self) -> None:
        """Say goodbye to everybody; takes a second at most."""
        await _close_all(list(self._peers))
        self._peers.close()


async def _close_all(lives: Sequence[Live]) -> None:
    async with trio.open_nursery() as nursery:
        for live in lives:
            nursery.start_soon(live.muxer.aclose)


def _tried(race: Race, targets: Sequence[Address]) -> dict[str, str]:
    return {str(address): race.failures.get(str(address), "no answer") for address in targets}


@asynccontextmanager
async def open_host(
    seed: bytes, listen: Sequence[str], gate: Gate, settings: HostSettings
) -> AsyncIterator[LibP2pHost]:
    """Raises: ValueError for an address that is none, CannotListen, LibP2pChanged."""
    await check_libp2p()
    listeners = Listeners(settings)
    await listeners.bind([parse(text) for text in listen])
    try:
        async with open_background() as nursery:
            host = LibP2pHost(NoiseIdentity.from_seed(seed), gate, listeners, settings, nursery)
            serve_identify(host)
            nursery.start_soon(listeners.run, host.arrived)
            try:
                yield host
            finally:
                listeners.close()
                with trio.CancelScope(shield=True):
                    await host.aclose()
    finally:
        listeners.close()
