"""The far end of the transports that are compared: ours, the same over TLS, the stock libp2p; in its own process.

python -m scripts.benchmarks._rpc_peer ours|tls|stock      prints where it listens, as JSON
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.agent.p2p.workshop import Neighbourhood, Workshop, WorkshopService
from twinshare.agent.heap import use_one_heap
from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.peer_session import PROTOCOL
from twinshare.agent.p2p.rpc import PeerServer
from twinshare.agent.simulation import MemoryEvents
from twinshare.protocols.table import Dispatcher

SINK = "/bench/sink/1.0.0"
STOCK_CALL = "/bench/call/1.0.0"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PIECE = 1 << 18


class TlsStream(Stream):
    """A TLS connection that claims to be a stream of a host, so that the same RPC runs over it."""

    def __init__(self, tls: trio.SSLStream[trio.SocketStream]) -> None:
        self._tls = tls

    peer_id = "tls"
    protocol = PROTOCOL

    def reset(self) -> None:
        self._tls.transport_stream.socket.close()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._tls.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        raise NotImplementedError("TLS has no half-closed streams")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._tls.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._tls.aclose()


def rpc_server() -> PeerServer:
    return PeerServer(Dispatcher({WorkshopService: Workshop().bind}), Neighbourhood(), MemoryEvents().subscribe, 60.0)


async def sink(stream: Stream) -> None:
    """Take what is announced in 8 bytes, then say so."""
    total = int.from_bytes(await exactly(stream, 8), "big")
    while total > 0:
        total -= len(await stream.receive_some(PIECE))
    await stream.send_all(b"done")


async def exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive_some(size - len(data))
    return data


async def serve_ours() -> None:
    async with open_libp2p_host(os.urandom(32), [LOOPBACK], gate=admit_all) as host:
        host.serve(PROTOCOL, rpc_server().serve)
        host.serve(SINK, sink)
        await ready(peer_id=host.peer_id, addresses=list(host.addresses))


async def serve_tls() -> None:
    """The first byte of a connection says what it is for: an RPC or bulk."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with _certificate() as file:
        context.load_cert_chain(file)
    server = rpc_server()

    async def take(socket: trio.SocketStream) -> None:
        tls = trio.SSLStream(socket, context, server_side=True)
        purpose = await exactly(tls, 1)
        await (server.serve if purpose == b"r" else sink)(TlsStream(tls))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        await ready(port=listeners[0].socket.getsockname()[1])


async def serve_stock() -> None:
    from libp2p.custom_types import TProtocol

    from tests.interop.test_stock import open_stock

    async def call(stream: Any) -> None:
        await stream.write(await stream.read(65536))
        await stream.close()

    async with open_stock() as host:
        host.set_stream_handler(TProtocol(STOCK_CALL), call)
        await ready(addresses=[str(address) for address in host.get_addrs()])


async def ready(**where: Any) -> None:
    """Say where this process listens, and go on for ever."""
    print(json.dumps(where), flush=True)
    log_to_stderr()  # nobody reads on: a line on stdout would end a session with a broken pipe
    await trio.sleep_forever()


def log_to_stderr() -> None:
    """Keep stdout for what a benchmark's process answers."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@asynccontextmanager
async def server(*arguments: str, module: str = "scripts.benchmarks._rpc_peer") -> AsyncIterator[dict[str, Any]]:
    """A server in its own process, and where it listens."""
    async with child(module, *arguments) as line:
        yield json.loads(line)


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[bytes]:
    """A program of ours in its own process, and the first line that it prints."""
    command = [sys.executable, "-m", module, *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
        try:
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
            yield line
        finally:
            process.kill()


@contextmanager
def _certificate() -> Iterator[str]:
    """A file with a key and its own certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    pem, pkcs8, clear = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.pem"
        file.write_bytes(key.private_bytes(pem, pkcs8, clear) + made.public_bytes(pem))
        yield str(file)


SERVERS: dict[str, Callable[[], Awaitable[None]]] = {"ours": serve_ours, "tls": serve_tls, "stock": serve_stock}

if __name__ == "__main__":
    use_one_heap()
    trio.run(SERVERS[sys.argv[1]])
