"""HTTP/1.1 by Hypercorn and h11, without what they let pass that another server in front may read differently.

Refused: bare line feeds, folded headers, a length beside a transfer encoding, other versions than 1.0 and 1.1. The
upgrade to HTTP/2 in clear is not offered. Errors of the protocol are answered as JSON, and a response's head travels
with the first part of its body.

This is the one module that touches private attributes of h11 (`Connection._receive_buffer`, `ReceiveBuffer._data`,
`ReceiveBuffer._extract`); `tests/api/test_framing.py` fails clearly when a version lacks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection

from ...protocols.errors import InvalidRequest, TooLarge, TwinshareError
from ..rest.errors import closing_response
from .websocket import StrictWebsocket

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_VERSIONS = frozenset({b"1.0", b"1.1"})


class StrictBuffer(ReceiveBuffer):
    """h11's buffer, where a line ends with CR LF and with nothing else."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head, once it is whole. Raises: h11.RemoteProtocolError."""
        end = self._data.find(b"\r\n\r\n", max(0, self._multiple_lines_search - 3))
        if self._data[:2] == b"\r\n":
            self._extract(2)
            return []
        if _BARE_LINE_FEED.search(self._data, 0, end if end >= 0 else len(self._data)):
            raise h11.RemoteProtocolError("a line that ends without a carriage return")
        if end < 0:
            self._multiple_lines_search = len(self._data)
            return None
        lines = self._extract(end + 4)[:-4].split(b"\r\n")
        if any(line.startswith((b" ", b"\t")) for line in lines):
            raise h11.RemoteProtocolError("a header that goes on in the next line")
        return lines


class StrictH11(H11Protocol):
    """One connection's protocol: bytes in, ASGI messages out. `has_left` says whether the client has hung up."""

    def __init__(self, *args: Any, has_left: Callable[[], bool]) -> None:
        super().__init__(*args)
        self._has_left = has_left
        vars(self.connection)["_receive_buffer"] = StrictBuffer()
        self._head = b""

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.stream is None

    async def handle(self, event: Event) -> None:
        try:
            await super().handle(event)
        except h11.RemoteProtocolError as error:
            await self._send_error_response(error.error_status_hint)
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        """In place of Hypercorn's, which changes to HTTP/2 here. Raises: h11.RemoteProtocolError."""
        names = {name for name, _ in event.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.RemoteProtocolError("a length beside a transfer encoding")
        if event.http_version not in _VERSIONS:
            raise h11.RemoteProtocolError("not HTTP/1.1", error_status_hint=400)

    async def _create_stream(self, request: h11.Request) -> None:
        if self.keep_alive_requests and self._has_left():
            # It came with another request and waited for that one's answer: nobody would learn what became of it.
            await self.send(Closed())
            return
        headers = dict(request.headers)
        tokens = {token.strip().lower() for token in headers.get(b"connection", b"").split(b",")}
        asks = request.method == b"GET" and headers.get(b"upgrade", b"").strip().lower() == b"websocket"
        if not (asks and b"upgrade" in tokens and isinstance(self.connection, h11.Connection)):
            await super()._create_stream(request)
            return
        self.stream = StrictWebsocket(
            self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server,
            self.stream_send, STREAM_ID,
        )  # fmt: skip
        self.connection = H11WSConnection(self.connection)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method="GET",
                raw_path=request.target,
                state=self.connection_state,
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        error = _refusal(status_code)
        headers, body = closing_response(error)
        headers += self.config.response_headers("h11")
        await self._send_h11_event(h11.Response(status_code=error.status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            return
        data = self._head + data
        self._head = b""
        if data:
            await self.send(RawData(data=data))


def _refusal(status: int) -> TwinshareError:
    if status in {413, 414, 431}:
        return TooLarge("the head of the request is too large")
    return InvalidRequest("this is not a valid HTTP/1.1 request")
