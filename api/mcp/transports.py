"""How clients of the Model Context Protocol reach the server: over stdin and stdout, or HTTP on the loopback.

Over stdio whoever started the process asks, with the token that the command line would use. Over HTTP each request
needs the bearer token of a node's account and is done with it: the port is open to all users of the machine, and this
process's own rights are not lent to them.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from mcp.server import ServerRequestContext
from mcp.server.stdio import stdio_server

from ...protocols.endpoint import endpoint
from ..rest_client import RESTClient
from .server import make_server

PATH = "/mcp"
MAX_SESSIONS = 64
_UNAUTHORIZED = b'{"error": "send Authorization: Bearer with a token of the node", "code": "unauthenticated"}'

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def run_stdio(url: str, token: str | None) -> None:
    """Serve the client at stdin and stdout until it closes them."""

    @asynccontextmanager
    async def open_client(context: ServerRequestContext[Any, Any]) -> AsyncIterator[RESTClient]:
        async with RESTClient(url, token=token) as client:
            yield client

    async def serve() -> None:
        server = make_server(open_client)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(serve)


def run_http(url: str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve HTTP on a loopback address until SIGINT or SIGTERM; `ready` gets the URL. Raises: OSError."""
    with make_socket(host, port) as listener:
        bound = listener.getsockname()[1]
        config = uvicorn.Config(
            make_app(url), log_level="warning", limit_concurrency=256, timeout_graceful_shutdown=2, server_header=False
        )
        ready(f"http://{endpoint(host, bound)}{PATH}")
        uvicorn.Server(config).run(sockets=[listener])


def make_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises: OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def make_app(url: str) -> App:
    """Return the ASGI application: the SDK's, which refuses foreign hosts and origins, behind a check of the token."""

    @asynccontextmanager
    async def open_client(context: ServerRequestContext[Any, Any]) -> AsyncIterator[RESTClient]:
        request: Any = context.request
        async with RESTClient(url, token=_bearer(dict(request.scope["headers"]))) as client:
            yield client

    inner: Any = make_server(open_client).streamable_http_app(
        streamable_http_path=PATH, max_request_body_size=1 << 20, max_sessions=MAX_SESSIONS, stateless_http=True
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _bearer(dict(scope["headers"])) is None:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _UNAUTHORIZED})
            return
        await inner(scope, receive, send)

    return app


def _bearer(headers: dict[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    text = token.strip().decode("latin-1")
    return text if scheme.lower() == b"bearer" and text else None
