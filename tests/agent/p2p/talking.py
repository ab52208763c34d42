"""A word with a peer's echo, for tests and for processes that must not load the whole of libp2p."""

from __future__ import annotations

import trio

from twinshare.agent.p2p.contract_hosts import ECHO
from twinshare.agent.p2p.host import Host, PeerId


async def talks(host: Host, peer_id: PeerId, data: bytes = b"hello") -> None:
    """An echo comes back whole."""
    stream = await host.open_stream(peer_id, ECHO)
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(got) < len(data):
            got += await stream.receive_some()
    assert got == data
    await stream.aclose()
