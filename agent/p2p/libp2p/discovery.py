"""The sources of hints that come with libp2p: multicast DNS and the fleet's table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import trio

from ....protocols.mesh import MAX_ADDRESSES, PeerRecord
from ..discovery import Discovery, OnHint
from ..host import PeerId
from ..records import make_record, number_of, read_record, record_key
from ..signing import Signer
from .dht import Dht, open_dht
from .host import LibP2pHost

log = structlog.get_logger(__name__)

_LOOK_EVERY: Final = 15.0
_PUT_EVERY: Final = 1800.0
_SEEK_TIME: Final = 8.0


class DhtDiscovery:
    """A `Discovery`. Keep our signed peer record in the table and read those of others. `number` is the last used."""

    def __init__(self, dht: Dht, host: LibP2pHost, signer: Signer, number: int) -> None:
        self._dht = dht
        self._host = host
        self._signer = signer
        self._number = number

    async def run(self, on_hint: OnHint) -> None:
        published: list[str] = []
        size = 0
        again = 0.0
        while True:
            addresses = list(self._host.addresses)[:MAX_ADDRESSES]
            due = trio.current_time() >= again or addresses != published or (self._dht.size > size)
            if addresses and self._dht.size and due:
                await self._put(addresses)
                published, size, again = addresses, self._dht.size, trio.current_time() + _PUT_EVERY
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

    async def _put(self, addresses: list[str]) -> None:
        self._number += 1
        record = PeerRecord(peer=self._host.peer_id, addresses=addresses, number=self._number)
        taken = await self._dht.put(record_key(self._host.peer_id), make_record(self._signer, record))
        log.debug("peer record stored in the DHT", peers=taken)


@asynccontextmanager
async def open_sources(
    host: LibP2pHost, signer: Signer, now: Callable[[], float], *, mdns: bool, dht: bool
) -> AsyncIterator[Sequence[Discovery]]:
    """Those that are wanted. `now` gives the epoch's seconds: a record of this start is newer than one of the last."""
    async with AsyncExitStack() as stack:
        sources: list[Discovery] = []
        if dht:
            table = await stack.enter_async_context(open_dht(host, number_of))
            sources.append(DhtDiscovery(table, host, signer, int(now() * 1000)))
        if mdns:
            from .mdns import MdnsDiscovery  # zeroconf is 5 MB

            sources.append(MdnsDiscovery(host))
        yield sources
