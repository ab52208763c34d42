"""The routes that are no operation of the table: root, fleet, upload, metrics, the document, the link to the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import trio

from ...agent.node import Node
from ...protocols.access import Role
from ...protocols.bodies import VmList
from ...protocols.errors import Unauthenticated, UnsupportedMediaType
from ...protocols.image import Image, ImageRef
from ...protocols.openapi import Endpoint, Media, document
from .answer import Answer, told
from .metrics import Metrics, exposition
from .request import NoQuery, Request, Upload
from .router import Route
from .sessions import LINK_LIFE, Sessions

NAME = "AI Environment Manager API"
_OCTETS = "application/octet-stream"


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /` for programs."""

    name: str
    version: str
    endpoints: list[str]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A link that opens the page in a browser, once, until `expires`."""

    link: str
    expires: datetime


class ImportQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: ImageRef


def root_body(node: Node) -> Root:
    """The document's endpoints first, then ours."""
    own = ["/api/image", "/api/operations", "/api/tokens", "/api/events", "/api/fleet/vm", "/api/health"]
    return Root(
        name=NAME,
        version=node.version,
        endpoints=[
            "/api/vm",
            "/api/p2p",
            "/api/remote",
            *own,
            "/api/v1",
            "/api/openapi.json",
            "/swagger-ui",
            "/metrics",
        ],
    )


def import_route(node: Node) -> Route:
    """`POST /api/image/import?name=…`: a disk as the body."""

    async def view(request: Request) -> Answer:
        query = request.fields(ImportQuery)
        kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != _OCTETS.encode():
            raise UnsupportedMediaType(f"an image is uploaded as {_OCTETS}")
        return told(await node.import_image(request.caller, query.name, Upload(request)))

    endpoint = Endpoint(
        verb="POST", path="/api/image/import", operation_id="import_image", tag="image", role=Role.OPERATOR,
        summary="Upload a qcow2 or raw disk as an image.", answers={200: Media(Image)}, query=ImportQuery,
        body=Media({"type": "string", "format": "binary"}, _OCTETS), body_required=True,
    )  # fmt: skip
    return Route("POST", endpoint.path, "import_image", view, endpoint)


def fleet_route(node: Node) -> Route:
    """`GET /api/fleet/vm`: the VMs of every known peer."""

    async def view(request: Request) -> Answer:
        request.fields(NoQuery)
        return told(VmList(vms=await node.fleet_vms(request.caller)))

    endpoint = Endpoint(
        verb="GET", path="/api/fleet/vm", operation_id="list_fleet_vms", tag="fleet", role=Role.VIEWER,
        summary="List the VMs of every known peer, with `node`, `reachable` and `observed_at`.",
        answers={200: Media(VmList)},
    )  # fmt: skip
    return Route("GET", endpoint.path, "list_fleet_vms", view, endpoint)


def metrics_route(node: Node, metrics: Metrics) -> Route:
    """`GET /metrics`, for Prometheus."""

    async def view(_request: Request) -> Answer:
        media_type, text = await exposition(node, metrics)
        return Answer(200, text, media_type.encode())

    endpoint = Endpoint(
        verb="GET", path="/metrics", operation_id="metrics", tag="node", role=Role.VIEWER,
        summary="Tell what the node counts, for Prometheus.",
        answers={200: Media({"type": "string"}, "text/plain", "Prometheus text format.")},
    )  # fmt: skip
    return Route("GET", endpoint.path, "metrics", view, endpoint)


def session_routes(sessions: Sessions, url: str, cookie: str) -> Iterator[Route]:
    """`POST /api/session` hands out a link; opening it once within a minute lets that browser in."""

    async def invite(request: Request) -> Answer:
        request.fields(NoQuery)
        key = sessions.invite(request.caller, trio.current_time())
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=LINK_LIFE)
        return told(Session(link=f"{url}/enter/{key}", expires=expires))

    async def enter(request: Request) -> Answer:
        session = sessions.enter(request.params["key"], trio.current_time())
        if session is None:
            raise Unauthenticated("this link was used or is too old; ask for a new one (`twinshare status --open`)")
        secure = "; Secure" if request.link.secure else ""
        value = f"{cookie}={session}; Path=/; HttpOnly; SameSite=Strict{secure}"
        return Answer(303, b"", headers=[(b"location", b"/"), (b"set-cookie", value.encode())])

    endpoint = Endpoint(
        verb="POST", path="/api/session", operation_id="open_session", tag="node", role=Role.VIEWER,
        summary="Make a link that opens the page in a browser, once, within a minute.",
        answers={200: Media(Session)},
    )  # fmt: skip
    yield Route("POST", endpoint.path, "open_session", invite, endpoint)
    yield Route("GET", "/enter/<key>", "enter", enter, open=True)


def document_route(
    path: str, name: str, routes: Sequence[Route], describe: Callable[[Sequence[Endpoint]], dict[str, Any]]
) -> Route:
    """The OpenAPI document of these routes, made when it is first asked for."""
    made: list[bytes] = []

    async def view(request: Request) -> Answer:
        request.caller.require(Role.VIEWER, "openapi")
        if not made:
            endpoints = [route.told for route in routes if route.told is not None]
            # A dozen milliseconds: too long for the loop.
            made.append(await trio.to_thread.run_sync(lambda: msgspec.json.encode(describe(endpoints))))
        return Answer(200, made[0])

    return Route("GET", path, name, view)


def describe(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """The OpenAPI document of this dialect."""
    return document(
        endpoints,
        title="twinshare",
        version=version,
        description="Virtual machines of this node and of its fleet. All errors look alike: see `Error`. An integer is "
        "written without a fraction (`2`, not `2.0`); a field that is not in a schema is refused.",
    )
