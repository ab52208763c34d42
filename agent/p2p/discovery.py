"""The port of peer discovery: sources of addresses besides the peers themselves. Dialling confirms each address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias

from ...protocols.mesh import PeerRecord
from .host import Host, PeerId

OnHint: TypeAlias = Callable[[PeerId, Sequence[str]], object]
"""Takes a peer and the addresses at which it may be; it must be quick and must not raise."""


class Discovery(Protocol):
    """One source: multicast DNS on the local network, or the fleet's DHT."""

    async def run(self, on_hint: OnHint) -> None:
        """Announce this node, and call `on_hint` with the peers that are found. Failures are logged, never raised."""
        ...

    async def find_peer(self, peer_id: PeerId) -> Sequence[str]:
        """Look up the addresses of a peer, which takes seconds. Empty when nobody knows."""
        ...


SignedRecord: TypeAlias = Callable[[], PeerRecord]
"""Gives this node's peer record, signed, as it is now."""
OpenDiscovery: TypeAlias = Callable[[Host, SignedRecord], AbstractAsyncContextManager[Sequence[Discovery]]]


@asynccontextmanager
async def no_discovery(_host: Host, _own: SignedRecord) -> AsyncIterator[Sequence[Discovery]]:
    """Yield no source: peers learn addresses from each other only."""
    yield []
