"""A route: one verb on one path with its view, and how it is registered with Quart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from quart import Blueprint, Response
from werkzeug.routing import BaseConverter

from ...protocols.access import Role
from ...protocols.openapi import Endpoint
from .requests import Incoming, current_request, current_websocket

View = Callable[..., Awaitable[Response]]
WebsocketView = Callable[..., Awaitable[None]]
Registered = TypeVar("Registered", View, WebsocketView)


@dataclass(frozen=True, slots=True)
class Route:
    """`name` stands in metrics and logs; `endpoint` is how the document describes it, `path` as in the table.

    A view is called with the values of the path's placeholders.
    """

    verb: str
    path: str
    name: str
    view: View
    endpoint: Endpoint | None = None
    # Serves the websockets of this path.
    websocket: WebsocketView | None = None


class Segment(BaseConverter):
    """One segment of a path, decoded on its own, so that `%2F` stays inside the name it belongs to.

    The application matches the path as it came (`RestApp.create_url_adapter`), and the guard has checked its UTF-8.
    """

    def to_python(self, value: str) -> str:
        return unquote(value)


def add_routes(blueprint: Blueprint, routes: Iterable[Route]) -> None:
    """Register the routes. Who may not call one is refused before anything of the request is read.

    Raises: ValueError when a verb is served twice on a path.
    """
    served = set()
    for route in routes:
        if (route.verb, route.path) in served:
            raise ValueError(f"{route.verb} {route.path} is served twice")
        served.add((route.verb, route.path))
        role = route.endpoint.role if route.endpoint is not None else None
        view = _for_role(route.view, role, route.name, current_request)
        blueprint.add_url_rule(route.path, route.name, view, methods=[route.verb])
        if route.websocket is not None:
            websocket = _for_role(route.websocket, role, route.name, current_websocket)
            blueprint.add_websocket(route.path, f"{route.name}_websocket", websocket)


def _for_role(view: Registered, role: Role | None, name: str, current: Callable[[], Incoming]) -> Registered:
    if role is None:
        return view

    @wraps(view)
    async def checked(**params: str) -> Any:
        current().caller.require(role, name)
        return await view(**params)

    return cast(Registered, checked)
