"""The REST application of a node: one QuartTrio, a blueprint for each dialect and one for the pages, and the guard."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import trio
from quart import Blueprint, Response

from ..agent.node import Node
from ..agent.trace import follow_trace
from ..protocols.access import Caller
from ..protocols.trace import read_traceparent
from . import meda, twinshare
from .rest.application import RestApp
from .rest.guard import Guard
from .rest.metrics import Metrics
from .rest.oidc import Authority
from .rest.requests import current_request, current_websocket
from .rest.routes import Route, add_routes
from .rest.sessions import Session, Sessions
from .twinshare import documents, pages
from .twinshare import sessions as browser_sessions

_WEB = Path(__file__).parent / "web"
_CORS_HEADERS = "authorization, content-type, idempotency-key, last-event-id, prefer, traceparent"


def make_app(node: Node, url: str) -> RestApp:
    """Return the application of `node`, which is reached at `url`. Raises: ConfigError."""
    config = node.config.api
    sessions, cookie = Sessions(), f"twinshare_{node.peer_id[-8:]}"
    authority = Authority(config.oidc) if config.oidc.issuer else None

    def by_token(secret: str) -> Caller | None:
        found = node.tokens.authenticate(secret)
        return authority.authenticate(secret, time.time()) if found is None and authority is not None else found

    def by_session(secret: str) -> Session | None:
        session = sessions.find(secret, trio.current_time())
        if session is None or not node.tokens.holds(session.caller.principal, session.caller.until):
            return None
        return session

    app = RestApp(config.max_body, Metrics(), lambda incoming: incoming.bound(node.tokens))
    app.renderers[f"{meda.ROOT}/".encode()] = meda.render_error
    _add_guard(app, Guard(config, cookie, by_token, by_session))
    ours = [
        *twinshare.routes(node, app.metrics),
        *browser_sessions.routes(sessions, url, cookie),
        *pages.root_routes(_WEB, twinshare.root_body(node)),
    ]
    theirs = list(meda.routes(node))
    described = [
        documents.route("/api/openapi.json", ours, partial(twinshare.describe, version=node.version)),
        documents.route(f"{meda.ROOT}/openapi.json", theirs, partial(meda.describe, version=node.version)),
    ]
    _add_blueprint(app, "pages", [*(one for one in ours if not one.path.startswith("/api/")), *pages.files(_WEB)])
    _add_blueprint(app, "twinshare", [*(one for one in ours if one.path.startswith("/api/")), described[0]])
    _add_blueprint(app, "meda", [*theirs, described[1]])
    return app


def _add_blueprint(app: RestApp, name: str, routes: Iterable[Route]) -> None:
    blueprint = Blueprint(name, __name__)
    add_routes(blueprint, routes)
    app.register_blueprint(blueprint)


def _add_guard(app: RestApp, guard: Guard) -> None:
    """The guard comes before everything, and the listed origins' pages may read what it let through."""

    @app.before_request
    async def check_request() -> None:
        request = current_request()
        follow_trace(read_traceparent(request.fields.get(b"traceparent", b"").decode("latin-1")))
        guard.check(request, is_open=request.endpoint == browser_sessions.OPEN_ENDPOINT)

    @app.before_websocket
    async def check_websocket() -> None:
        websocket = current_websocket()
        follow_trace(read_traceparent(websocket.fields.get(b"traceparent", b"").decode("latin-1")))
        guard.check(websocket, is_open=False)

    @app.after_request
    async def allow_origin(response: Response) -> Response:
        request = current_request()
        origin = request.fields.get(b"origin")
        if origin is None or origin not in guard.origins:
            return response
        response.headers.extend({"access-control-allow-origin": origin.decode("latin-1"), "vary": "origin"})
        if request.method == "OPTIONS" and response.status_code == 204:
            response.headers.extend({
                "access-control-allow-methods": response.headers["allow"],
                "access-control-allow-headers": _CORS_HEADERS,
                "access-control-max-age": "600",
            })  # fmt: skip
        return response
