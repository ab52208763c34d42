"""py-libp2p: the adapter, the only room that imports it. Every trap it has is handled in here.

Nothing of libp2p is imported before the first host opens, and then only what is used: see `lightly`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from ..discovery import Discovery, SignedRecord
from ..host import Gate, Host
from .minimal_import import minimal_libp2p
from .settings import HostSettings

if TYPE_CHECKING:
    from .host import LibP2pHost


@asynccontextmanager
async def open_libp2p_host(
    seed: bytes, listen: Sequence[str], *, gate: Gate, settings: HostSettings | None = None
) -> AsyncIterator[LibP2pHost]:
    """A host that listens on the multiaddrs `listen` (TCP; port 0 chooses one); `seed` is its ed25519 key, 32 bytes.

    Raises: ValueError for an address that is none; OSError for one that cannot be listened on; LibP2pChanged when the
    installed libp2p is not the one that we know.
    """
    await trio.to_thread.run_sync(_load)
    from .host import open_host

    async with open_host(seed, listen, gate, settings or HostSettings()) as host:
        yield host


@asynccontextmanager
async def open_discovery(
    at: Host, own: SignedRecord, now: Callable[[], float], *, mdns: bool = True, dht: bool = True
) -> AsyncIterator[Sequence[Discovery]]:
    """The sources of hints that a libp2p host has; none for another host. `now` gives the seconds of the epoch."""
    from .discovery import open_sources
    from .host import LibP2pHost

    if not isinstance(at, LibP2pHost):
        yield []
        return
    async with open_sources(at, own, now, mdns=mdns, dht=dht) as discovery:
        yield discovery


def _load() -> None:
    with minimal_libp2p():
        import_module(".host", __package__)
        import_module(".discovery", __package__)
