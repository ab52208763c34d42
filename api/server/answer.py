"""What goes back to a client: JSON in one shape, with the same protective headers, whatever happened.

`failure` turns an error of the tree into a response; a dialect that tells errors in another form has its own `Refuse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ...protocols.errors import (
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    RateLimited,
    TwinshareError,
    Unauthenticated,
    UpgradeRequired,
)

Header = tuple[bytes, bytes]

JSON = b"application/json"
_encode = msgspec.json.Encoder().encode

# On every answer, also on the pages: nothing is cached, sniffed, framed, or loaded from elsewhere.
PROTECTION: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Answer:
    """One whole response."""

    __slots__ = ("body", "headers", "media_type", "status")

    def __init__(self, status: int, body: bytes, media_type: bytes = JSON, headers: Iterable[Header] = ()) -> None:
        self.status = status
        self.body = body
        self.media_type = media_type
        self.headers = tuple(headers)

    def head(self) -> dict[str, Any]:
        """The ASGI message that begins this response."""
        headers = [(b"content-type", self.media_type), (b"content-length", b"%d" % len(self.body)), *PROTECTION]
        headers.extend(self.headers)
        return {"type": "http.response.start", "status": self.status, "headers": headers}


def told(value: Any, status: int = 200, headers: Iterable[Header] = ()) -> Answer:
    """`value` as JSON."""
    return Answer(status, _encode(value), JSON, headers)


Refuse = Callable[[TwinshareError], Answer]


def failure(error: TwinshareError) -> Answer:
    """The documented error body, and the headers that a status calls for."""
    return told(error.to_wire(), error.status, error_headers(error))


def error_headers(error: TwinshareError) -> list[Header]:
    """The headers that an error's status calls for."""
    headers: list[Header] = []
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="twinshare"'))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.details["allow"]).encode()))
    if isinstance(error, UpgradeRequired):
        headers += [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    if isinstance(error, RateLimited | Overloaded):
        headers.append((b"retry-after", b"%d" % max(1, int(error.details.get("retry_after", 1)))))
    return headers


def printable(header: bytes, name: str) -> str:
    """A header's value as text. Raises: InvalidRequest unless it is 1 to 255 visible ASCII characters."""
    if not 0 < len(header) <= 255 or not all(0x21 <= byte <= 0x7E for byte in header):
        raise InvalidRequest(f"{name} must be 1 to 255 visible ASCII characters", path=name)
    return header.decode("ascii")
