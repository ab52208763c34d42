"""The sources of hints that come with libp2p: multicast DNS and the fleet's table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import trio

from ....protocols.mesh import PeerRecord
from ..discovery import Discovery, OnHint, SignedRecord
from ..host import PeerId
from ..records import number_of, read_record, record_key
from .dht import Dht, open_dht
from .host import LibP2pHost

log = structlog.get_logger(__name__)

_LOOK_EVERY: Final = 15.0
_PUT_EVERY: Final = 1800.0
_SEEK_TIME: Final = 8.0


class DhtDiscovery:
    """A `Discovery`. Keep our signed peer record in the table and read those of others."""

    def __init__(self, dht: Dht, own: SignedRecord) -> None:
        self._dht, self._own = dht, own

    async def run(self, on_hint: OnHint) -> None:
        published = 0
        size = 0
        again = 0.0
        while True:
            record = self._own()
            due = trio.current_time() >= again or record.number != published or (self._dht.size > size)
            if record.addresses and self._dht.size and due:
                await self._put(record)
                published, size, again = record.number, self._dht.size, trio.current_time() + _PUT_EVERY
            await trio.sleep(_LOOK_EVERY)

    async def find_peer(self, peer_id: PeerId) -> Sequence[str]:
        found: list[str] = []
        with trio.move_on_after(_SEEK_TIME):
            key = record_key(peer_id)
            value = await self._dht.get(key)
            if value is not None:
                found += read_record(key, value).addresses
            found += [address for address in await self._dht.find_peer(peer_id) if address not in found]
        return found

    async def _put(self, record: PeerRecord) -> None:
        taken = await self._dht.put(record_key(record.peer), record.token.encode())
        log.debug("peer record stored in the DHT", peers=taken)


@asynccontextmanager
async def open_sources(
    host: LibP2pHost, own: SignedRecord, now: Callable[[], float], *, mdns: bool, dht: bool
) -> AsyncIterator[Sequence[Discovery]]:
    """Open those that are wanted. `now` gives the seconds of the epoch."""
    async with AsyncExitStack() as stack:
        sources: list[Discovery] = []
        if dht:
            table = await stack.enter_async_context(open_dht(host, lambda key, value: number_of(key, value, now())))
            sources.append(DhtDiscovery(table, own))
        if mdns:
            from .mdns import MdnsDiscovery  # zeroconf is 5 MB

            sources.append(MdnsDiscovery(host))
        yield sources
