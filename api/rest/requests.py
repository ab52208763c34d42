"""A request as the views see it: Quart's, with its caller, a strict query, and a body within bounds.

Hypercorn has parsed it; nothing of it is trusted yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
import trio
from quart.globals import request_ctx, websocket_ctx
from quart_trio.wrappers import TrioRequest, TrioWebsocket
from werkzeug.exceptions import RequestEntityTooLarge

from ...agent.tokens import TokenStore
from ...protocols.access import Caller
from ...protocols.console import CLOSED_BY_ERROR, MAX_REASON
from ...protocols.errors import InvalidRequest, RequestTimeout, TwinshareError, Unauthenticated, UnsupportedMediaType
from ...protocols.method import Method
from ...protocols.reading import convert_query
from .connection_info import ConnectionInfo
from .sessions import Session

Query = TypeVar("Query", bound=msgspec.Struct)

# Seconds within which a whole JSON body must arrive, and each part of an upload.
BODY_TIME = 20.0
UPLOAD_IDLE = 30.0
# Bytes of a body that wait for a view, before the client is made to wait.
UNREAD_BYTES = 1 << 18
# What an early answer still reads of a body, so that the connection can go on.
DRAIN_BYTES = 1 << 16
DRAIN_TIME = 1.0

# A header that decides something must not be there twice.
_SINGLE = frozenset(
    {b"authorization", b"content-type", b"idempotency-key", b"last-event-id", b"origin", b"prefer", b"sec-fetch-site"}
)


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For routes that take none."""


class RequestBody:
    """Quart's request body with backpressure: Quart's own keeps whatever a client sends, as fast as it is sent."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        self.complete = False
        self._limit = max_content_length
        self._too_large = bool(max_content_length and expected_content_length and
                               expected_content_length > max_content_length)  # fmt: skip
        self._data = bytearray()
        self._cut_off = False
        self._changed = trio.lowlevel.ParkingLot()

    async def put(self, data: bytes, *, more: bool) -> None:
        """Take a part off the wire, and wait while too much is unread."""
        self._data += data
        self.complete = not more
        self._changed.unpark_all()
        while not self.complete and len(self._data) > UNREAD_BYTES:
            await self._changed.park()

    def cut_off(self) -> None:
        """The client has left: whoever waits for the rest gets an error."""
        self._cut_off = not self.complete
        self._changed.unpark_all()

    def set_result(self, data: bytes) -> None:
        """Be a whole body at once: Quart's test contexts use this."""
        self._data += data
        self.complete = True

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        """Return the next part. Raises: InvalidRequest when the body ends too soon."""
        while not self._data and not self.complete:
            if self._cut_off:
                raise InvalidRequest("the request body is not whole")
            await self._changed.park()
        if not self._data:
            raise StopAsyncIteration
        data = bytes(self._data)
        self._data.clear()
        self._changed.unpark_all()
        return data

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._whole().__await__()

    async def _whole(self) -> bytes:
        """Raises: RequestEntityTooLarge, without reading what is too much; InvalidRequest."""
        whole = bytearray()
        while not self._too_large:
            try:
                whole += await anext(self)
            except StopAsyncIteration:
                return bytes(whole)
            self._too_large = self._limit is not None and len(whole) > self._limit
        raise RequestEntityTooLarge


class Incoming:
    """What a request and the handshake of a websocket have in common, for the guard and the views."""

    scope: Any
    query_string: bytes
    # Set by the guard; routes that are open to everybody have none.
    admitted: Caller | None = None
    # The browser's session, when that let the caller in.
    session: Session | None = None
    started_at = 0.0

    @cached_property
    def fields(self) -> dict[bytes, bytes]:
        """The headers by their lower-case names."""
        return dict(self.scope["headers"])

    @property
    def connection(self) -> ConnectionInfo:
        info: ConnectionInfo = self.scope["state"]["connection"]
        return info

    @property
    def raw_path(self) -> bytes:
        """The path as it came, percent-encoded."""
        path: bytes = self.scope["raw_path"]
        return path

    @property
    def caller(self) -> Caller:
        """Who asks. Raises: Unauthenticated."""
        if self.admitted is None:
            raise Unauthenticated("this needs a caller")
        return self.admitted

    @contextmanager
    def bound(self, tokens: TokenStore) -> Iterator[None]:
        """Run a block for as long as the token and the session that let the caller in are good.

        Raises: Unauthenticated when they end.
        """
        token = nullcontext() if self.admitted is None else tokens.bound(self.admitted)
        with token, nullcontext() if self.session is None else self.session.bound():
            yield

    def check_single(self) -> None:
        """Raises: InvalidRequest when a header that decides something comes more than once."""
        headers = self.scope["headers"]
        if len(headers) == len(self.fields):
            return
        names = [name for name, _ in headers if name in _SINGLE]
        if len(names) != len(set(names)):
            raise InvalidRequest("a header that may come once came twice")

    def query_pairs(self) -> list[tuple[str, str]]:
        """Return the parameters of the query as they came. Raises: InvalidRequest when it is not UTF-8."""
        if not self.query_string:
            return []
        try:
            text = self.query_string.decode("ascii")
            return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=32)
        except ValueError:
            raise InvalidRequest("the query is not UTF-8, or too long", path="query") from None

    def arguments(self) -> dict[str, str]:
        """Return the parameters of the query. Raises: InvalidRequest when it is not UTF-8 or has one twice."""
        return single(self.query_pairs())

    def query_as(self, kind: type[Query]) -> Query:
        """Return the query as a `kind`. Raises: InvalidRequest naming the parameter that is wrong."""
        return convert_query(self.arguments(), kind)


class RestRequest(Incoming, TrioRequest):
    """One request on one connection."""

    body_class = RequestBody  # type: ignore[assignment]  # the same interface, without Quart's unbounded buffer
    body: RequestBody  # type: ignore[assignment]  # as above
    status = 0

    @cached_property
    def has_body(self) -> bool:
        return self.fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.fields

    async def json_body(self) -> bytes:
        """Return the whole body, which must be JSON of at most `max_body` bytes.

        Raises: UnsupportedMediaType, InvalidRequest; RequestEntityTooLarge and RequestTimeout of werkzeug.
        """
        if not self.has_body:
            return b""
        kind, _, rest = self.fields.get(b"content-type", b"").partition(b";")
        charset = rest.strip().lower().replace(b'"', b"")
        if kind.strip().lower() != b"application/json" or charset not in {b"", b"charset=utf-8"}:
            raise UnsupportedMediaType("the body must be JSON: send Content-Type: application/json")
        return await self.get_data(as_text=False, cache=True, parse_form_data=False)

    async def upload(self) -> AsyncIterator[bytes]:
        """Yield the parts of the body. Raises: RequestTimeout when the sender stalls; InvalidRequest."""
        while True:
            with trio.move_on_after(UPLOAD_IDLE) as timeout:
                part = await anext(self.body, None)
            if timeout.cancelled_caught:
                raise RequestTimeout(f"nothing of the upload arrived for {UPLOAD_IDLE:.0f} s")
            if part is None:
                return
            yield part

    async def drained(self) -> bool:
        """Read what is left of a small body; whether the connection can go on after an early answer."""
        if not self.has_body or self.body.complete:
            return True
        length = self.content_length
        if length is None or length > DRAIN_BYTES:
            return False
        with trio.move_on_after(DRAIN_TIME):
            async for _ in self.body:
                pass
        return self.body.complete


class RestWebsocket(Incoming, TrioWebsocket):
    """One websocket, from its handshake on."""

    accepted = False
    status = 101

    async def accept(self, *args: Any, **more: Any) -> None:
        await super().accept(*args, **more)
        self.accepted = True

    async def end(self, error: TwinshareError, code: int | None = None) -> None:
        """Close the websocket, saying why; `code` stands in place of the error's own word and number."""
        said = error.message if code is not None else f"{error.code}: {error.message}"
        reason = said.encode()[:MAX_REASON].decode(errors="ignore")
        await self.close(CLOSED_BY_ERROR + error.status if code is None else code, reason)


def current_request() -> RestRequest:
    return cast(RestRequest, request_ctx.request)


def current_websocket() -> RestWebsocket:
    return cast(RestWebsocket, websocket_ctx.websocket)


def single(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return parameters that may come once each. Raises: InvalidRequest when one comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("a query parameter is there twice", path="query")
    return found


def request_options(request: RestRequest, method: Method) -> Caller:
    """Return the caller with the request's Idempotency-Key and Prefer. Raises: InvalidRequest for a wrong key."""
    caller = request.caller
    if not method.mutates:
        return caller
    key = request.fields.get(b"idempotency-key")
    detach = _wants_detach(request)
    if key is None and not detach:
        return caller
    return msgspec.structs.replace(caller, idempotency_key=None if key is None else _printable(key), detach=detach)


def _printable(key: bytes) -> str:
    if not 0 < len(key) <= 255 or not all(0x21 <= byte <= 0x7E for byte in key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters", path="Idempotency-Key")
    return key.decode("ascii")


def _wants_detach(request: RestRequest) -> bool:
    """Whether the client asked for the operation instead of its result (RFC 7240)."""
    preferences = request.fields.get(b"prefer", b"").lower().split(b",")
    return any(one.partition(b";")[0].strip() == b"respond-async" for one in preferences)
