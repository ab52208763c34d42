"""The OpenAPI documents: each describes the routes of one dialect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import trio
from quart import Response

from ...protocols.access import Role
from ...protocols.method import summary
from ...protocols.openapi import Endpoint, document
from ...protocols.services import SERVICES
from ...protocols.table import all_methods
from ..rest.requests import current_request
from ..rest.responses import json_response
from ..rest.routes import Route


def route(path: str, routes: Sequence[Route], describe: Callable[[Sequence[Endpoint]], dict[str, Any]]) -> Route:
    """Return the route of the document of these routes, which is made when it is first asked for."""
    made: list[bytes] = []

    async def view() -> Response:
        current_request().caller.require(Role.VIEWER, "openapi")
        if not made:
            endpoints = [route.endpoint for route in routes if route.endpoint is not None]
            # A dozen milliseconds: too long for the loop.
            made.append(await trio.to_thread.run_sync(lambda: msgspec.json.encode(describe(endpoints))))
        return json_response(made[0])

    return Route("GET", path, "openapi", view)


def _tags() -> dict[str, str]:
    """What each tag stands for: the service whose methods it has."""
    described = {method.path.split("/")[1]: summary(method.service) for method in all_methods(SERVICES).values()}
    return described | {
        "remote": "The same operations, done by a peer.",
        "fleet": "All nodes of the fleet.",
        "events": "What happens on the node.",
        "node": "The node itself.",
    }


def describe(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """Return the OpenAPI document of this dialect."""
    return document(
        endpoints,
        title="twinshare",
        version=version,
        description="Virtual machines of this node and of its fleet. All errors look alike: see `Error`. An integer is "
        "written without a fraction (`2`, not `2.0`); a field that is not in a schema is refused.",
        tags=_tags(),
    )
