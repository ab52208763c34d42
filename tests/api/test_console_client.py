"""The Python client's console against a node that does not read."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from functools import partial

import anyio
import anyio.lowlevel
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping
from wsproto.utilities import generate_accept_token

from twinshare.api.rest_client import RESTClient
from twinshare.api.websocket_writer import _MAX_REPLIES, open_writer


async def serve_deafly(stream: trio.SocketStream, said: bytes) -> None:
    """A node that pings, talks, and reads nothing until its client has read all of that."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split()[1]
    fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + generate_accept_token(key)
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n\r\n")
    protocol = Connection(ConnectionType.SERVER)
    # Reading begins when the client has begun to write more than the kernel takes.
    while unread(stream) < 1 << 16:
        await trio.sleep(0.01)
    for event in (Ping(b"x"), *(BytesMessage(data=said[at : at + 4096]) for at in range(0, len(said), 4096))):
        await stream.send_all(protocol.send(event))
    async for data in stream:
        protocol.receive_data(bytes(data))
        if any(isinstance(event, CloseConnection) for event in protocol.events()):
            return


def unread(stream: trio.SocketStream) -> int:
    """The bytes that wait in the kernel."""
    count = array.array("i", [0])
    fcntl.ioctl(stream.socket.fileno(), termios.FIONREAD, count)
    return count[0]


def test_a_node_that_only_pings_gets_a_bounded_number_of_answers() -> None:
    class Stuck:
        """A connection that takes nothing."""

        async def write(self, data: bytes) -> None:
            await anyio.sleep_forever()

    async def main() -> None:
        async with open_writer(Stuck()) as writer:
            for _ in range(1000):
                writer.reply(b"pong")
            await anyio.lowlevel.checkpoint()
            assert writer._to_write.statistics().current_buffer_used == _MAX_REPLIES

    trio.run(main)


def test_a_ping_does_not_hold_up_the_reader_while_the_node_reads_nothing() -> None:
    said = bytes(range(256)) * (32 << 10)

    async def converse(url: str) -> None:
        async with RESTClient(url) as client, client.console("one") as console:
            heard = 0
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(console.send, bytes(8 << 20))
                while heard < len(said):
                    heard += len(await console.receive())
                tasks.cancel_scope.cancel()
            assert heard == len(said)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, partial(serve_deafly, said=said), 0, host="127.0.0.1")
            )
            url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            with trio.fail_after(20):
                await converse(url)
                await trio.to_thread.run_sync(asyncio.run, converse(url), abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    trio.run(main)
