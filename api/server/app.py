"""The whole face of a node, joined: routes, guard, application."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from ...agent.node import Node
from ...protocols.access import Caller
from . import console, dialect, events, extras, meda
from .face import Face
from .guard import Guard
from .metrics import Metrics
from .oidc import Authority
from .pages import Pages
from .router import Route, Router
from .sessions import Sessions


@dataclass(frozen=True, slots=True)
class App:
    """What a server needs of a face."""

    face: Face
    metrics: Metrics


def make_app(node: Node, url: str) -> App:
    """The ASGI application of `node`, which is reached at `url`. Raises: ConfigError."""
    config = node.config.api
    metrics, sessions = Metrics(), Sessions()
    cookie = f"twinshare_{node.peer_id[-8:]}"
    authority = Authority(config.oidc) if config.oidc.issuer else None

    def by_token(secret: str) -> Caller | None:
        found = node.tokens.authenticate(secret)
        return authority.authenticate(secret, time.time()) if found is None and authority is not None else found

    def holds(caller: Caller) -> bool:
        return _still_holds(node, caller)

    def by_session(secret: str) -> Caller | None:
        caller = sessions.find(secret, trio.current_time())
        return caller if caller is not None and holds(caller) else None

    guard = Guard(config, cookie, by_token, by_session)
    own: list[Route] = [
        *dialect.routes(node),
        events.route(node.events, holds),
        *console.routes(node, holds),
        extras.import_route(node),
        extras.fleet_route(node),
        extras.metrics_route(node, metrics),
        *extras.session_routes(sessions, url, cookie),
        *Pages(Path(__file__).parent.parent / "web", extras.root_body(node)).routes(),
    ]
    theirs = list(meda.routes(node))
    documents = [
        extras.document_route("/api/openapi.json", "openapi", own, partial(extras.describe, version=node.version)),
        extras.document_route(
            f"{meda.ROOT}/openapi.json", "meda_openapi", theirs, partial(meda.describe, version=node.version)
        ),
    ]
    router = Router([*own, *theirs, *documents], {meda.ROOT.encode(): meda.refuse})
    return App(Face(router, guard, metrics, config.max_body), metrics)


def _still_holds(node: Node, caller: Caller) -> bool:
    """A session, and a stream, end with the token that opened them."""
    if not caller.principal.startswith("token:"):
        return True
    name = caller.principal.removeprefix("token:")
    token = next((one for one in node.tokens.list() if one.name == name), None)
    return token is not None and (token.expires_at is None or token.expires_at.timestamp() > time.time())
