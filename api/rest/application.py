"""The QuartTrio application as we need it: paths matched as they came, bodies with backpressure, JSON for every error.

It knows no route. `api/app.py` puts the blueprints and the guard on it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote

import structlog
import trio
from quart import Response, has_websocket_context
from quart.ctx import RequestContext, WebsocketContext
from quart.sessions import SessionInterface
from quart.typing import ResponseReturnValue
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug import exceptions as werkzeug
from werkzeug.routing import MapAdapter

from ...protocols.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    TooLarge,
    TwinshareError,
)
from ...protocols.operation import Detached
from . import requests
from .errors import PROTECTION
from .metrics import Metrics
from .requests import Incoming, RestRequest, RestWebsocket, current_request, current_websocket
from .responses import error_response, json_response
from .routes import Segment

log = structlog.get_logger(__name__)

# How a dialect answers an error; the name is that of the route, None before the guard has let the caller in.
ErrorRenderer = Callable[[TwinshareError, str | None], Response]
# Runs a view for as long as what let its caller in is good.
Bound = Callable[[Incoming], AbstractContextManager[None]]


class _Connection(TrioASGIHTTPConnection):
    """Quart-Trio's, where a body that nobody reads makes its client wait."""

    async def handle_messages(  # type: ignore[override]  # as Quart-Trio has it
        self, nursery: trio.Nursery, request: Any, receive: Any
    ) -> None:
        while (message := await receive())["type"] == "http.request":
            await request.body.put(message.get("body", b""), more=message.get("more_body", False))
        request.body.cut_off()
        nursery.cancel_scope.cancel()


class _NoSessions(SessionInterface):
    """Quart's cookie sessions are not used: see sessions.py."""

    async def open_session(self, app: Any, request: Any) -> Any:
        return self._null

    def __init__(self) -> None:
        self._null = self.null_session_class()


class RestApp(QuartTrio):
    """The application of one node. `renderers` answer the errors below a path in a dialect's own form."""

    asgi_http_class = _Connection
    request_class = RestRequest
    websocket_class = RestWebsocket
    session_interface = _NoSessions()  # type: ignore[assignment]  # Quart names its default's class

    def __init__(self, max_body: int, metrics: Metrics, admitted: Bound) -> None:
        super().__init__(__name__, static_folder=None)
        self._admitted = admitted
        self.metrics = metrics
        self.renderers: dict[bytes, ErrorRenderer] = {}
        self.config["MAX_CONTENT_LENGTH"] = max_body
        self.config["BODY_TIMEOUT"] = requests.BODY_TIME
        # A response has no time limit of its own: the connection has one for each part.
        self.config["RESPONSE_TIMEOUT"] = None
        self.url_map.converters = {**self.url_map.converters, "default": Segment}
        self.url_map.merge_slashes = False
        self.url_map.redirect_defaults = False
        self.after_request(self._finish)
        self.teardown_request(self._note)
        self.teardown_websocket(self._note)
        self.register_error_handler(TwinshareError, self._on_error)
        self.register_error_handler(werkzeug.HTTPException, self._on_http_exception)
        self.register_error_handler(Detached, self._on_detached)
        self.register_error_handler(Exception, self._on_bug)

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Match the path as it came: Quart's would split a name at its `%2F`. The guard has judged the host."""
        if request is None:
            return None
        path = request.scope["raw_path"].decode("latin-1")
        return MapAdapter(self.url_map, "", "/", "", request.scheme, path, request.method)

    async def dispatch_request(self, request_context: RequestContext | None = None) -> ResponseReturnValue:
        with self._bound(current_request()):
            return await super().dispatch_request(request_context)

    async def dispatch_websocket(self, websocket_context: WebsocketContext | None = None) -> ResponseReturnValue | None:
        with self._bound(current_websocket()):
            return await super().dispatch_websocket(websocket_context)

    @contextmanager
    def _bound(self, incoming: Incoming) -> Iterator[None]:
        """Run a view until the server stops, or the token or the session that let the caller in ends.

        Raises: Unavailable, Unauthenticated then.
        """
        with incoming.connection.interruptible(), self._admitted(incoming):
            yield

    async def make_default_options_response(self) -> Response:
        """Say which verbs a path takes. Raises: NotFound of werkzeug."""
        adapter = self.create_url_adapter(current_request())
        allowed = sorted(adapter.allowed_methods()) if adapter is not None else []
        return Response(b"", 204, {"allow": ", ".join(allowed)}, content_type="application/json")

    async def _finish(self, response: Response) -> Response:
        request = current_request()
        response.headers.extend(PROTECTION)
        if request.has_body and (response.status_code == RequestTimeout.status or not await request.drained()):
            response.headers["connection"] = "close"
        request.status = response.status_code
        return response

    async def _note(self, error: BaseException | None) -> None:
        """Count a request. Names, never paths: a path can hold a secret."""
        incoming = self._incoming()
        if incoming.connection.endless:
            return
        status = 499 if error is not None else getattr(incoming, "status", 0)
        name, seconds = _name(incoming), trio.current_time() - incoming.started_at
        self.metrics.count(name, status, seconds)
        who = incoming.admitted.principal if incoming.admitted is not None else None
        log.debug("request", operation=name, status=status, milliseconds=round(seconds * 1e3, 1), caller=who)

    @staticmethod
    def _incoming() -> RestRequest | RestWebsocket:
        return current_websocket() if has_websocket_context() else current_request()

    async def _on_error(self, error: TwinshareError) -> Response:
        """Answer in the dialect of the path. An open websocket is closed with the reason, and the response dropped."""
        incoming = self._incoming()
        if isinstance(incoming, RestWebsocket) and incoming.accepted:
            await incoming.end(error)
        path, name = incoming.raw_path, _endpoint(incoming) if incoming.admitted is not None else None
        for root, render in self.renderers.items():
            if path.startswith(root):
                response = render(error, name)
                break
        else:
            response = error_response(error)
        if isinstance(incoming, RestWebsocket):
            response.headers.extend({**PROTECTION, "connection": "close"})
            incoming.status = response.status_code
        return response

    async def _on_http_exception(self, error: werkzeug.HTTPException) -> Response:
        return await self._on_error(_typed(error, self._incoming()))

    async def _on_detached(self, detached: Detached) -> Response:
        """202, and where the operation can be watched: on the node that does it."""
        request = current_request()
        segments, named = request.raw_path.decode("ascii").split("/"), request.view_args or {}
        _, at, node = str(named.get("vm") or named.get("name") or "").rpartition("@")
        elsewhere = f"/api/remote/{quote(node, safe='')}" if at else "/api"
        root = "/".join(segments[:4]) if segments[2] == "remote" else elsewhere
        location = f"{root}/operations/{detached.operation.id}"
        return json_response(detached.operation, 202, {"location": location, "preference-applied": "respond-async"})

    async def _on_bug(self, error: Exception) -> Response:
        """The client gets an id, the log what belongs to it."""
        id = secrets.token_hex(8)
        log.error("a request failed by a bug", id=id, operation=_name(self._incoming()), exc_info=error)
        return await self._on_error(TwinshareError(f"internal error; the node's log tells more under {id}", id=id))


def _endpoint(incoming: RestRequest | RestWebsocket) -> str | None:
    """The name of the route, without its blueprint."""
    return incoming.endpoint.rpartition(".")[2] if incoming.endpoint is not None else None


def _name(incoming: RestRequest | RestWebsocket) -> str:
    """What a request is called in metrics and logs."""
    if incoming.method == "OPTIONS":
        return "options"
    if incoming.endpoint is None:
        return "refused"
    blueprint, _, name = incoming.endpoint.rpartition(".")
    return f"meda_{name}" if blueprint == "meda" else name


def _typed(error: werkzeug.HTTPException, incoming: Incoming) -> TwinshareError:
    """Return Quart's refusals as errors of our tree."""
    path = incoming.raw_path.decode("ascii", "replace")
    match error:
        case werkzeug.MethodNotAllowed():
            allow = sorted(error.valid_methods or ())
            return MethodNotAllowed(f"{current_request().method} is not served at {path}", allow=allow)
        case werkzeug.NotFound():
            return NotFound(f"there is nothing at {path}")
        case werkzeug.RequestTimeout():
            return RequestTimeout(f"the request body did not arrive within {requests.BODY_TIME:.0f} s")
        case werkzeug.RequestEntityTooLarge():
            return TooLarge("the request body is too large; see api.max_body")
    if isinstance(incoming, RestWebsocket):
        return NotFound("no websocket is served here")
    return InvalidRequest(error.description or "this request is not understood")
