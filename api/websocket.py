"""A websocket as its client sees it: bytes in, messages out, no socket (RFC 6455). What ends it becomes our errors."""

from __future__ import annotations

import base64
import os

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, generate_accept_token

from ..protocols.console import CLOSED_BY_ERROR, CLOSED_NORMALLY
from ..protocols.errors import ErrorBody, TwinshareError
from .exchange import NodeUnreachable

LARGEST = 1 << 15
"""Bytes of one message that we send."""


class ClientSocket:
    """One websocket. When it has ended, `end` is the sentence with which the node ended it normally, or `error` why.

    That is what the node says, or NodeUnreachable when the connection was lost.
    """

    def __init__(self) -> None:
        self._key = base64.b64encode(os.urandom(16))
        self._connection = Connection(ConnectionType.CLIENT)
        self._replies = b""
        self.end: str | None = None
        self.error: TwinshareError | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What the handshake asks with."""
        return {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self._key.decode(),
        }

    def check(self, status: int, accept: str) -> None:
        """Whether a websocket has begun. Raises: NodeUnreachable."""
        if status != 101 or accept.encode() != generate_accept_token(self._key):
            raise NodeUnreachable("what answers there is not a twinshare node of this version: it opens no websocket")

    def feed(self, data: bytes) -> bytes:
        """What the node said; `data` is b"" when the connection has ended. Look at `end` and `error` then."""
        said = bytearray()
        try:
            if not data:
                raise NodeUnreachable("the connection with the node was lost")
            self._connection.receive_data(data)
            for event in self._connection.events():
                if isinstance(event, BytesMessage | TextMessage):
                    said += event.data if isinstance(event, BytesMessage) else event.data.encode()
                elif isinstance(event, Ping):
                    self._replies += self._connection.send(event.response())
                elif isinstance(event, CloseConnection):
                    self._closed(event)
        except LocalProtocolError as error:
            self.error = NodeUnreachable(f"what answers there is not a twinshare node of this version: {error}")
        except TwinshareError as error:
            self.error = error
        return bytes(said)

    def replies(self) -> bytes:
        """What has to be sent because of what was fed."""
        replies, self._replies = self._replies, b""
        return replies

    def messages(self, data: bytes) -> bytes:
        """`data` as messages, ready to be sent; nothing once it has ended. Raises: `error`, if there is one."""
        if self.error is not None:
            raise self.error
        if self.end is not None:
            return b""
        starts = range(0, len(data), LARGEST)
        return b"".join(self._connection.send(BytesMessage(data=data[at : at + LARGEST])) for at in starts)

    def close(self) -> bytes:
        """A last word, ready to be sent."""
        try:
            return self._connection.send(CloseConnection(code=CloseReason.NORMAL_CLOSURE))
        except LocalProtocolError:
            return b""

    def _closed(self, event: CloseConnection) -> None:
        """Raises: the error that it stands for."""
        reason = event.reason or ""
        if event.code == CLOSED_NORMALLY:
            self.end = reason or "the console has ended"
            return
        if event.code < CLOSED_BY_ERROR:
            raise NodeUnreachable(f"the node ended the connection: {reason or f'code {int(event.code)}'}")
        code, _, sentence = reason.partition(": ")
        raise TwinshareError.from_wire(ErrorBody(error=sentence, code=code), event.code - CLOSED_BY_ERROR)
