"""The serial console of a VM as an asynchronous stream of bytes, under asyncio and under trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpcore
import httpx

from ..protocols.console import SILENCE
from .async_client import AsyncApiClient
from .exchange import NodeUnreachable, guest_path
from .websocket import ClientSocket
from .websocket_writer import WebsocketWriter, open_writer

_READ_SIZE = 1 << 16
_CLOSE_TIMEOUT = 1.0


class Console:
    """`async for data in console` yields the guest's output until the VM stops; `end` is then the node's reason.

    Raises, from every method: what the node raises, Overloaded when this client reads too slowly, PeerUnreachable when
    the peer is lost, NodeUnreachable when the node is.
    """

    def __init__(self, stream: Any, socket: ClientSocket, writer: WebsocketWriter) -> None:
        self._stream, self._socket, self._writer = stream, socket, writer

    @property
    def end(self) -> str | None:
        return self._socket.end

    async def receive(self) -> bytes:
        """Return the guest's next output; b"" once the VM has stopped."""
        while self._socket.end is None:
            if self._socket.error is not None:
                raise self._socket.error
            try:
                data = await self._stream.read(_READ_SIZE, SILENCE)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                data = b""
            output = self._socket.feed(data)
            self._writer.reply(self._socket.replies())
            if output:
                return output
        return b""

    async def send(self, data: bytes) -> None:
        """Send input to the guest; waits while the guest does not read."""
        try:
            await self._writer.write(self._socket.messages(data))
        except NodeUnreachable:
            if self._socket.end is None:
                raise self._socket.error or NodeUnreachable("the connection with the node was lost", "lost") from None

    def __aiter__(self) -> Console:
        return self

    async def __anext__(self) -> bytes:
        output = await self.receive()
        if not output:
            raise StopAsyncIteration
        return output

    async def aclose(self) -> None:
        """Close the connection; the VM goes on."""
        with suppress(NodeUnreachable):
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._writer.write(self._socket.close())


@asynccontextmanager
async def open_console(client: AsyncApiClient, vm: str, peer: str | None) -> AsyncIterator[Console]:
    """Open the console for as long as the block lasts. Raises: what the node raises; NodeUnreachable."""
    socket = ClientSocket()
    response: httpx.Response = await client.stream(guest_path(vm, "/console", peer), socket.headers, SILENCE)
    try:
        socket.check(response.status_code, response.headers.get("sec-websocket-accept", ""))
        stream = response.extensions["network_stream"]
        async with open_writer(stream) as writer:
            console = Console(stream, socket, writer)
            try:
                yield console
            finally:
                await console.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()
