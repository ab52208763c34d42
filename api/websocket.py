"""The client's end of a websocket (RFC 6455) without a socket: bytes in, messages out, its end as our errors."""

from __future__ import annotations

import base64
import os
from typing import Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, generate_accept_token

from ..protocols.console import CLOSED_BY_ERROR, CLOSED_NORMALLY
from ..protocols.errors import ErrorBody, TwinshareError
from .exchange import NodeUnreachable

MAX_MESSAGE = 1 << 15
"""Bytes of one message that is sent."""
MAX_RECEIVED = 1 << 20


class ClientSocket:
    """One websocket.

    When it has ended, `end` is the reason of a normal close, else `error` is what the node closed it with, or
    NodeUnreachable when the connection was lost.
    """

    def __init__(self) -> None:
        self._key = base64.b64encode(os.urandom(16))
        self._connection = Connection(ConnectionType.CLIENT)
        self._replies = b""
        # The parts of the message that is not complete yet.
        self._begun: list[Any] = []
        self.end: str | None = None
        self.error: TwinshareError | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the handshake."""
        return {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self._key.decode(),
        }

    def check(self, status: int, accept: str) -> None:
        """Check the response to the handshake. Raises: NodeUnreachable."""
        if status == 101 and not accept:
            raise NodeUnreachable("the connection with the node was lost in its answer", "lost")
        if status != 101 or accept.encode() != generate_accept_token(self._key):
            raise NodeUnreachable("what answers there is not a twinshare node of this version: it opens no websocket")

    def feed(self, data: bytes) -> bytes:
        """Return the data in the messages that these bytes complete; b"" says that the connection was lost.

        Look at `end` and `error` after it.
        """
        parts = self._take(data)
        return b"".join(part.data if isinstance(part, BytesMessage) else part.data.encode() for part in parts)

    def feed_messages(self, data: bytes) -> list[bytes | str]:
        """Return the whole messages that these bytes complete. Look at `end` and `error` after it."""
        messages: list[bytes | str] = []
        for part in self._take(data):
            self._begun.append(part.data)
            if sum(map(len, self._begun)) > MAX_RECEIVED:
                self.error = NodeUnreachable("the node sends a message that is too large")
                break
            if part.message_finished:
                text = isinstance(part, TextMessage)
                messages.append("".join(self._begun) if text else b"".join(self._begun))
                self._begun.clear()
        return messages

    def _take(self, data: bytes) -> list[BytesMessage | TextMessage]:
        parts: list[BytesMessage | TextMessage] = []
        try:
            if not data:
                raise NodeUnreachable("the connection with the node was lost", "lost")
            self._connection.receive_data(data)
            for event in self._connection.events():
                if isinstance(event, BytesMessage | TextMessage):
                    parts.append(event)
                elif isinstance(event, Ping):
                    self._replies += self._connection.send(event.response())
                elif isinstance(event, CloseConnection):
                    self._closed(event)
        except LocalProtocolError as error:
            self.error = NodeUnreachable(f"what answers there is not a twinshare node of this version: {error}")
        except TwinshareError as error:
            self.error = error
        return parts

    def replies(self) -> bytes:
        """Return the bytes to send because of what was fed: pongs, the answer to a close."""
        replies, self._replies = self._replies, b""
        return replies

    def messages(self, data: bytes) -> bytes:
        """Return `data` as the bytes of messages; nothing once it has ended. Raises: `error`, if there is one."""
        if self.error is not None:
            raise self.error
        if self.end is not None:
            return b""
        starts = range(0, len(data), MAX_MESSAGE)
        return b"".join(self._connection.send(BytesMessage(data=data[at : at + MAX_MESSAGE])) for at in starts)

    def text(self, message: str) -> bytes:
        """Return a text message as bytes; nothing once it has ended. Raises: `error`, if there is one."""
        if self.error is not None:
            raise self.error
        return b"" if self.end is not None else self._connection.send(TextMessage(data=message))

    def close(self) -> bytes:
        """Return the bytes of a normal close."""
        try:
            return self._connection.send(CloseConnection(code=CloseReason.NORMAL_CLOSURE))
        except LocalProtocolError:
            return b""

    def _closed(self, event: CloseConnection) -> None:
        """Record a normal end. Raises: the error that the code stands for."""
        reason = event.reason or ""
        if event.code == CLOSED_NORMALLY:
            self.end = reason or "the stream has ended"
            return
        if event.code < CLOSED_BY_ERROR:
            raise NodeUnreachable(f"the node ended the connection: {reason or f'code {int(event.code)}'}")
        code, _, sentence = reason.partition(": ")
        raise TwinshareError.from_wire(ErrorBody(error=sentence, code=code), event.code - CLOSED_BY_ERROR)
