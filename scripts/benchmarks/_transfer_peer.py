"""The far node of the transfers: its images, calls, and a tunnel to a port, on one connection; in its own process.

python -m scripts.benchmarks._transfer_peer FOLDER DISK PORT [LISTEN]      prints where it listens, as JSON
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from scripts.benchmarks._rpc_peer import LOOPBACK, ready, rpc_server
from tests.images.stores import disk_store
from twinshare.agent.heap import use_one_heap
from twinshare.agent.images.contract_samples import quiet
from twinshare.agent.images.port import Origin
from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.peer_session import PROTOCOL
from twinshare.agent.reach.fleet_images import BlobServer
from twinshare.agent.streams import carry
from twinshare.protocols import blob
from twinshare.protocols.access import LOCAL_ADMIN

TUNNEL = "/bench/tunnel/1.0.0"


async def serve(folder: Path, disk: Path, port: int, listen: str) -> None:
    async with disk_store(folder) as store, open_libp2p_host(os.urandom(32), [listen], gate=admit_all) as host:
        image = await store.add_image("bench", read(disk), report=quiet, origin=Origin("bench", raw=True))
        images = BlobServer(store, host.expect_socket)

        async def serve_blob(stream: Stream) -> None:
            await images.serve(LOCAL_ADMIN, stream)

        async def serve_tunnel(stream: Stream) -> None:
            async with await trio.open_tcp_stream("127.0.0.1", port) as far:
                await carry(stream, far)

        host.serve(PROTOCOL, rpc_server().serve)
        host.serve(blob.PROTOCOL, serve_blob)
        host.serve(TUNNEL, serve_tunnel)
        await ready(peer_id=host.peer_id, addresses=list(host.addresses), digest=image.digest, pid=os.getpid())


async def read(disk: Path) -> AsyncIterator[bytes]:
    """The content of a file in pieces."""
    async with await trio.open_file(disk, "rb") as file:
        while data := await file.read(1 << 20):
            yield data


if __name__ == "__main__":
    use_one_heap()
    trio.run(
        serve, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else LOOPBACK
    )
