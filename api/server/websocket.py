"""Websockets on our connections: Hypercorn's, without what a stranger could use against us.

No compression (a small frame would unfold to a large one), no message beyond `MAX_MESSAGE`, errors before the handshake
is accepted as JSON, and an end to every connection whose client breaks the protocol. A view can send pings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from wsproto.events import Ping

from ...protocols.errors import InvalidRequest
from .answer import failure

MAX_MESSAGE = 1 << 16
_EXTENSIONS = b"sec-websocket-extensions"


class StrictWebsocket(WSStream):
    """One websocket, from its handshake to its end."""

    async def handle(self, event: Event) -> None:
        if isinstance(event, Request):
            event = replace(event, headers=[header for header in event.headers if header[0].lower() != _EXTENSIONS])
        elif isinstance(event, Data) and not self.closed and not self.handshake.accepted:
            await self._send_error_response(InvalidRequest.status)
            await self.send(StreamClosed(stream_id=self.stream_id))
            return
        await super().handle(event)
        if isinstance(event, Request) and self.closed:
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _handle_events(self) -> None:
        await super()._handle_events()
        if self.buffer.length > self.buffer.max_length:
            # It was told; what it says from now on is of no interest.
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: Any) -> None:
        if message is None or message["type"] != "websocket.ping":
            await super().app_send(message)
        elif self.state is ASGIWebsocketState.CONNECTED and not self.closed:
            await self._send_wsproto_event(Ping())

    async def _send_error_response(self, status_code: int) -> None:
        if self.state is not ASGIWebsocketState.HANDSHAKE:
            return
        self.state = ASGIWebsocketState.HTTPCLOSED
        answer = failure(InvalidRequest("this is not a valid websocket handshake"))
        headers = [*answer.head()["headers"], (b"connection", b"close")]
        await self.send(Response(stream_id=self.stream_id, status_code=answer.status, headers=headers))
        await self.send(Body(stream_id=self.stream_id, data=answer.body))
        await self.send(EndBody(stream_id=self.stream_id))
