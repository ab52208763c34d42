"""DCUtR: the two ends of a relayed connection dial each other at the same moment, through both routers.

The end that was dialled through the relay opens the talk. Both tell from where they are seen; then, half a round trip
later for the one who counts it, both dial from the port that they listen on. The opener is the client of the new
connection, whoever's packet arrives first.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from .....protocols.errors import TwinshareError
from ....backoff import Backoff
from ...addresses import Address
from ...host import Admission, Direction, PathKind, Stream
from ..dialer import dial_tcp
from ..handshake import UpgradeFailed
from ..identify import Identity
from ..listener import Listeners
from ..multiaddr_bytes import from_bytes, to_bytes
from ..peers import Live
from ..swarm import Swarm
from ..upgrade import Upgraded
from ..varint import BadMessage, MessageReader, write_message
from .circuit import ANSWER_TIME, MAX_MESSAGE, ask

log = structlog.get_logger(__name__)

DCUTR: Final = "/libp2p/dcutr"
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 300.0
_DIAL_TIME: Final = 3.0
_REDIAL: Final = 0.1
_MAX_ADDRESSES: Final = 8
_RETIRE_EVERY: Final = 5.0
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Punch:
    """Makes direct connections of relayed ones. It remembers from where others see us."""

    def __init__(self, swarm: Swarm, listeners: Listeners) -> None:
        self._swarm, self._listeners = swarm, listeners
        self._seen_as: dict[Address, None] = {}  # newest last

    def consider(self, live: Live) -> None:
        """A connection is new: one that came to us through a relay is worth replacing."""
        swarm = self._swarm
        through = live.info.path is PathKind.RELAYED and live.info.direction is Direction.INBOUND
        if through and swarm.admission(live) is Admission.MEMBER:
            swarm.nursery.start_soon(self._punch, live)

    def learn(self, live: Live, identity: Identity) -> None:
        """From where a peer that we dialled sees us: the port that our router gave to the one we listen on."""
        seen = identity.observed
        if seen is None or seen.relay is not None or seen.loopback:
            return
        if live.info.path is PathKind.DIRECT and live.info.direction is Direction.OUTBOUND:
            self._seen_as.pop(seen, None)
            self._seen_as[seen] = None
            while len(self._seen_as) > _MAX_ADDRESSES // 2:
                del self._seen_as[next(iter(self._seen_as))]

    async def handle(self, stream: Stream) -> None:
        """The far end of a relayed connection wants a direct one."""
        live = self._swarm.carrier(stream)
        if live is None or live.info.path is not PathKind.RELAYED:
            return
        reader = MessageReader(stream, most=MAX_MESSAGE)
        try:
            with trio.fail_after(ANSWER_TIME):
                theirs = await reader.read(HolePunch())
                if theirs is None or theirs.type != HolePunch.CONNECT:
                    return
                await write_message(stream, self._connect_message())
                sync = await reader.read(HolePunch())
        except (BadMessage, trio.TooSlowError):
            return
        if sync is not None and sync.type == HolePunch.SYNC:
            await self._dial_all(live, _addresses(theirs), client=False)
            await self._retire(live)

    async def _punch(self, live: Live) -> None:
        while not live.muxer.session.over:
            await self._until_direct(live)
            await self._retire(live)

    async def _until_direct(self, live: Live) -> None:
        """As long as there is only the relay, again and again with longer pauses: networks change."""
        peer, backoff = live.info.peer_id, Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while self._swarm.peers.path(peer) is not PathKind.DIRECT and not live.muxer.session.over:
            await self._try_once(live)
            log.debug("hole punching", peer=peer, path=self._swarm.peers.path(peer))
            if self._swarm.peers.path(peer) is not PathKind.DIRECT:
                with trio.move_on_after(backoff.next()):
                    await live.muxer.closed.wait()

    async def _try_once(self, live: Live) -> None:
        try:
            stream = await self._swarm.open_stream(live, DCUTR, ANSWER_TIME)
        except TwinshareError:
            return
        try:
            asked = trio.current_time()
            theirs, _ = await ask(stream, self._connect_message(), HolePunch())
            round_trip = trio.current_time() - asked
            await write_message(stream, HolePunch(type=HolePunch.SYNC))
            await trio.sleep(round_trip / 2)
            await self._dial_all(live, _addresses(theirs), client=True)
        except (BadMessage, *_BROKEN):
            return
        finally:
            stream.reset()

    def _connect_message(self) -> HolePunch:
        own = [address for address in self._listeners.direct_addresses if not address.loopback]
        addresses = [*reversed(self._seen_as), *own][:_MAX_ADDRESSES]
        return HolePunch(type=HolePunch.CONNECT, ObsAddrs=[to_bytes(address) for address in addresses])

    async def _dial_all(self, live: Live, addresses: list[Address], *, client: bool) -> None:
        """The first that is proven is kept; the far side's packets may be the ones that get through."""
        with trio.move_on_after(_DIAL_TIME):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(self._dial, live, address, client, nursery.cancel_scope)

    async def _dial(self, live: Live, address: Address, client: bool, others: trio.CancelScope) -> None:
        while self._swarm.peers.path(live.info.peer_id) is not PathKind.DIRECT:
            try:
                upgraded = await self._dial_once(live, address, client)
                self._swarm.adopt(upgraded, address, live.info.direction)
            except UpgradeFailed as error:
                log.debug("hole punching", address=str(address), reason=str(error))
                await trio.sleep(_REDIAL)
            except TwinshareError as error:
                log.debug("hole punching", address=str(address), reason=error.message)
                break
        others.cancel()

    async def _dial_once(self, live: Live, address: Address, client: bool) -> Upgraded:
        """Raises: UpgradeFailed."""
        swarm = self._swarm
        pipe = await dial_tcp(address, swarm.settings.write_timeout, self._listeners.source_for(address))
        return await swarm.upgrader.upgrade(pipe, live.info.direction, live.info.peer_id, client=client)

    async def _retire(self, live: Live) -> None:
        """Until the direct connection ends; a relayed one ends when a direct one stands and it has nothing to carry."""
        while not live.muxer.session.over and self._swarm.peers.path(live.info.peer_id) is PathKind.DIRECT:
            await trio.sleep(_RETIRE_EVERY)
            if live.muxer.stream_count == 0:
                await live.muxer.aclose()


def _addresses(message: HolePunch) -> list[Address]:
    found = []
    for data in message.ObsAddrs[:_MAX_ADDRESSES]:
        try:
            address = from_bytes(data)
        except ValueError:
            continue
        if address.relay is None and address.port and not address.unspecified and not address.loopback:
            found.append(address)
    return found
