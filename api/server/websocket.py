"""Websockets on our connections: Hypercorn's, without what a stranger could use against us.

No compression (a small frame would unfold to a large one), no message beyond `MAX_MESSAGE`, errors before the handshake
is accepted as JSON, and an end to every connection whose client breaks the protocol.
"""

from __future__ import annotations

from dataclasses import replace

from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream

from ...protocols.errors import InvalidRequest
from ..rest.errors import closing_response

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
            # It got the close frame; what it sends from now on is dropped.
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_error_response(self, status_code: int) -> None:
        if self.state is not ASGIWebsocketState.HANDSHAKE:
            return
        self.state = ASGIWebsocketState.HTTPCLOSED
        error = InvalidRequest("this is not a valid websocket handshake")
        headers, body = closing_response(error)
        await self.send(Response(stream_id=self.stream_id, status_code=error.status, headers=headers))
        await self.send(Body(stream_id=self.stream_id, data=body))
        await self.send(EndBody(stream_id=self.stream_id))
