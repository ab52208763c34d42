"""An error of the tree as an HTTP response: its headers and its JSON body, for Quart and for what lies below it."""

from __future__ import annotations

import msgspec

from ...protocols.errors import (
    MethodNotAllowed,
    Overloaded,
    RateLimited,
    TwinshareError,
    Unauthenticated,
    UpgradeRequired,
)

JSON = "application/json"

# On every response, the pages included: nothing is cached, sniffed, framed, or loaded from elsewhere.
PROTECTION: dict[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def error_headers(error: TwinshareError) -> dict[str, str]:
    """Return the headers that an error's status calls for."""
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": 'Bearer realm="twinshare"'}
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        return {"allow": ", ".join(error.details["allow"])}
    if isinstance(error, UpgradeRequired):
        return {"upgrade": "websocket", "connection": "upgrade"}
    if isinstance(error, RateLimited | Overloaded):
        return {"retry-after": str(max(1, int(error.details.get("retry_after", 1))))}
    return {}


def closing_response(error: TwinshareError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of a refusal after which the connection is closed."""
    body = msgspec.json.encode(error.to_wire())
    headers = {
        "content-type": JSON, "content-length": str(len(body)), "connection": "close",
        **PROTECTION, **error_headers(error),
    }  # fmt: skip
    return [(name.encode(), value.encode()) for name, value in headers.items()], body
