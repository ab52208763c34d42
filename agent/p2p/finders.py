"""Where hints about peers come from, besides the peers themselves. A hint is nothing until dialling has proved it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias

from .host import Host, PeerId

Tell: TypeAlias = Callable[[PeerId, Sequence[str]], object]
"""Takes a peer and the addresses at which it may be; must be quick and must not raise."""


class Finder(Protocol):
    """One such source: multicast on the local network, a table that members share."""

    async def run(self, tell: Tell) -> None:
        """Let others find us, and tell of those that are heard of. It raises nothing; what fails is logged."""
        ...

    async def seek(self, peer_id: PeerId) -> Sequence[str]:
        """Ask where a peer is; takes seconds. Empty when nobody knows."""
        ...


OpenFinders: TypeAlias = Callable[[Host], AbstractAsyncContextManager[Sequence[Finder]]]


@asynccontextmanager
async def no_finders(_host: Host) -> AsyncIterator[Sequence[Finder]]:
    """Peers hear of each other from each other alone."""
    yield []
