"""A stream into a guest for programs, under asyncio and trio: a session that is attached to, an SSH server, a port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpcore
import httpx

from ..protocols.console import SILENCE
from ..protocols.guest_socket import ClientEnd, client_text, input_offset
from ..protocols.guest_stream import Finished, FromGuest, InputEnd, Opened, Resize, SendSignal
from .async_client import AsyncApiClient
from .exchange import NodeUnreachable
from .websocket import ClientSocket
from .websocket_writer import WebsocketWriter, open_writer

_READ_SIZE = 1 << 16
_CLOSE_TIMEOUT = 2.0


class GuestStream:
    """Yields `Output` with its offset, and last `Finished`; the input is sent meanwhile. Made by `open_guest_stream`.

    A stream that is cut raises NodeUnreachable. A session goes on: attach to it again with the offset after the last
    byte that came.
    """

    def __init__(self, stream: Any, socket: ClientSocket, writer: WebsocketWriter) -> None:
        self._stream, self._socket, self._writer = stream, socket, writer
        self._end = ClientEnd()
        self._received: list[bytes | str] = []

    @property
    def opened(self) -> Opened:
        """What was opened, and at which offsets output and input begin."""
        return self._end.opened or Opened()

    @property
    def input_taken(self) -> int:
        """The bytes of a session's input that the guest has: what comes after it is sent again when it is cut."""
        return self._end.input_taken

    async def receive(self) -> FromGuest:
        """Return what comes next. Raises: what ended the stream; NodeUnreachable when the connection was lost."""
        while True:
            while self._received:
                if (message := self._end.read(self._received.pop(0))) is not None:
                    return message
            await self._read()

    async def send(self, data: bytes, offset: int | None = None) -> None:
        """Send input; `offset` says where it begins, so that what was accepted already is skipped."""
        if offset is not None:
            await self._writer.write(self._socket.text(input_offset(offset)))
        await self._writer.write(self._socket.messages(data))

    async def send_eof(self) -> None:
        """End the input."""
        await self._writer.write(self._socket.text(client_text(InputEnd())))

    async def resize(self, columns: int, rows: int) -> None:
        """Give a terminal another size."""
        await self._writer.write(self._socket.text(client_text(Resize(columns=columns, rows=rows))))

    async def signal(self, name: str) -> None:
        """Send a signal, such as INT, to all processes of the session."""
        await self._writer.write(self._socket.text(client_text(SendSignal(signal=name))))

    def __aiter__(self) -> GuestStream:
        self._finished = False
        return self

    async def __anext__(self) -> FromGuest:
        if self._finished:
            raise StopAsyncIteration
        message = await self.receive()
        self._finished = isinstance(message, Finished)
        return message

    async def _read(self) -> None:
        if self._socket.error is not None:
            raise self._socket.error
        if self._socket.end is not None:
            raise NodeUnreachable("the stream has ended", "lost")
        try:
            data = await self._stream.read(_READ_SIZE, SILENCE)
        except (httpcore.NetworkError, httpcore.TimeoutException):
            data = b""
        self._received += self._socket.feed_messages(data)
        self._writer.reply(self._socket.replies())

    async def start(self) -> None:
        """Wait for the first message. Raises: what the node raises."""
        while self._end.opened is None:
            await self._read()
            if self._received:
                self._end.read(self._received.pop(0))

    async def aclose(self) -> None:
        """Close the connection; a session goes on."""
        with suppress(NodeUnreachable):
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._writer.write(self._socket.close())


@asynccontextmanager
async def open_guest_stream(client: AsyncApiClient, target: str) -> AsyncIterator[GuestStream]:
    """Open the websocket at a path for as long as the block lasts. Raises: what the node raises; NodeUnreachable."""
    socket = ClientSocket()
    response: httpx.Response = await client.stream(target, socket.headers, SILENCE)
    try:
        socket.check(response.status_code, response.headers.get("sec-websocket-accept", ""))
        network_stream = response.extensions["network_stream"]
        async with open_writer(network_stream) as writer:
            stream = GuestStream(network_stream, socket, writer)
            try:
                await stream.start()
                yield stream
            finally:
                await stream.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()
