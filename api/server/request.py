"""One request as the views see it: its headers, its caller, its body within bounds.

Hypercorn has parsed it; nothing of it is trusted yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import trio

from ...protocols.access import Caller
from ...protocols.console import CLOSED_BY_ERROR, MAX_REASON
from ...protocols.errors import (
    InvalidRequest,
    RequestTimeout,
    TooLarge,
    TwinshareError,
    Unauthenticated,
    UnsupportedMediaType,
)
from ...protocols.reading import convert_query
from .answer import Answer, Header, Refuse, failure
from .link import Link

Fields = TypeVar("Fields", bound=msgspec.Struct)
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Seconds within which a whole body must arrive, and each part of an upload.
BODY_TIME = 20.0
UPLOAD_IDLE = 30.0
# What an early answer still reads of a body, so that the connection can go on.
DRAIN_BYTES = 1 << 16
DRAIN_TIME = 1.0

# A header that decides something must not be there twice.
_SINGLE = frozenset(
    {b"authorization", b"content-type", b"idempotency-key", b"last-event-id", b"origin", b"prefer", b"sec-fetch-site"}
)


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For routes that take none."""


class Request:
    """One request on one connection."""

    __slots__ = (
        "_ended",
        "_max_body",
        "admitted",
        "begun",
        "headers",
        "link",
        "name",
        "params",
        "path",
        "query",
        "receive",
        "refuse",
        "scope",
        "send",
        "verb",
        "websocket",
    )

    def __init__(self, scope: Message, receive: Receive, send: Send, link: Link, max_body: int) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.link = link
        # The handshake of a websocket is a GET; its view `accept`s it, or answers as any other.
        self.websocket: bool = scope["type"] == "websocket"
        self.verb: str = scope.get("method", "GET")
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.params: dict[str, str] = {}
        # What it is called in metrics and logs, as soon as its route is found.
        self.name = "refused"
        self._max_body = max_body
        self.admitted: Caller | None = None
        self.begun = False
        self.refuse: Refuse = failure
        self._ended = self.websocket or not self._has_body()

    @property
    def caller(self) -> Caller:
        """Who asks; routes that are open to everybody have none."""
        if self.admitted is None:
            raise Unauthenticated("this needs a caller")
        return self.admitted

    def check_single(self) -> None:
        """Raises: InvalidRequest when a header that decides something comes more than once."""
        headers: list[Header] = self.scope["headers"]
        if len(headers) == len(self.headers):
            return
        names = [name for name, _ in headers if name in _SINGLE]
        if len(names) != len(set(names)):
            raise InvalidRequest("a header that may come once came twice")

    def _has_body(self) -> bool:
        return self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers

    def arguments(self) -> dict[str, str]:
        """What the query string says. Raises: InvalidRequest when it is not UTF-8 or says a thing twice."""
        if not self.query:
            return {}
        try:
            pairs = parse_qsl(self.query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
        except ValueError:
            raise InvalidRequest("the query is not UTF-8, or too long", path="query") from None
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InvalidRequest("a query parameter is there twice", path="query")
        return found

    def fields(self, kind: type[Fields]) -> Fields:
        """The query as a `kind`. Raises: InvalidRequest naming the parameter that is wrong."""
        return convert_query(self.arguments(), kind)

    async def body(self) -> bytes:
        """The whole body, which must be JSON of at most `max_body` bytes.

        Raises: UnsupportedMediaType, TooLarge, RequestTimeout.
        """
        if self._ended:
            return b""
        self._require_json()
        self._bound(int(self.headers.get(b"content-length", b"0")))
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_TIME) as patience:
            while not self._ended:
                part = await self.part()
                size += len(part)
                self._bound(size)
                parts.append(part)
        if patience.cancelled_caught:
            raise RequestTimeout(f"the request body did not arrive within {BODY_TIME:.0f} s")
        return b"".join(parts)

    def _bound(self, size: int) -> None:
        if size > self._max_body:
            raise TooLarge(f"a request body may have at most {self._max_body} bytes", limit=self._max_body)

    def _require_json(self) -> None:
        kind, _, rest = self.headers.get(b"content-type", b"").partition(b";")
        charset = rest.strip().lower().replace(b'"', b"")
        if kind.strip().lower() != b"application/json" or charset not in {b"", b"charset=utf-8"}:
            raise UnsupportedMediaType("the body must be JSON: send Content-Type: application/json")

    async def part(self) -> bytes:
        """The next part of the body; `more` tells its end, not b"". Raises: InvalidRequest when it is cut off."""
        message = await self.receive()
        if message["type"] != "http.request":
            self._ended = True
            raise InvalidRequest("the request body is not whole")
        self._ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    @property
    def more(self) -> bool:
        """Whether a part of the body is still to be read."""
        return not self._ended

    async def reply(self, answer: Answer) -> None:
        """Send a whole response. What is left of the body is read if it is small; else the connection ends.

        A response that has begun cannot be taken back: it stays without its end, which tells the client.
        """
        if self.begun:
            return
        head = answer.head()
        if self.websocket:
            head["headers"].append((b"connection", b"close"))
            await self.send({**head, "type": "websocket.http.response.start"})
            await self.send({"type": "websocket.http.response.body", "body": answer.body})
            return
        if not self._ended and (answer.status == RequestTimeout.status or not await self._drain()):
            head["headers"].append((b"connection", b"close"))
        await self.send(head)
        body = b"" if self.verb == "HEAD" else answer.body
        await self.send({"type": "http.response.body", "body": body})

    async def _drain(self) -> bool:
        length = self.headers.get(b"content-length")
        if length is None or int(length) > DRAIN_BYTES:
            return False
        with trio.move_on_after(DRAIN_TIME), contextlib.suppress(InvalidRequest):
            while not self._ended:
                await self.part()
            return True
        return False

    async def begin(self, headers: list[Header]) -> None:
        """Start a response without a known end."""
        self.begun = True
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def feed(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of it."""

        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def accept(self) -> None:
        """Begin the websocket that was asked for."""
        await self.receive()
        self.begun = True
        await self.send({"type": "websocket.accept"})

    async def message(self) -> bytes | None:
        """What the client says next; None when it has left."""
        message = await self.receive()
        if message["type"] != "websocket.receive":
            return None
        text: str | None = message.get("text")
        return text.encode() if text is not None else bytes(message["bytes"])

    async def tell(self, data: bytes) -> None:
        """Send a message to the client."""
        await self.send({"type": "websocket.send", "bytes": data})

    async def ping(self) -> None:
        await self.send({"type": "websocket.ping"})

    async def close(self, error: TwinshareError, code: int | None = None) -> None:
        """End the websocket, saying why; `code` stands in place of the error's own word and number."""
        said = error.message if code is not None else f"{error.code}: {error.message}"
        reason = said.encode()[:MAX_REASON].decode(errors="ignore")
        code = CLOSED_BY_ERROR + error.status if code is None else code
        await self.send({"type": "websocket.close", "code": code, "reason": reason})


class Upload:
    """A request body as an asynchronous iterable of its parts. Raises: RequestTimeout when the sender stalls."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        if not self._request.more:
            raise StopAsyncIteration
        with trio.move_on_after(UPLOAD_IDLE):
            return await self._request.part()
        raise RequestTimeout(f"nothing of the upload arrived for {UPLOAD_IDLE:.0f} s")
