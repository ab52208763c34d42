"""All routes of the twinshare dialect: the table's, and those that are no operation of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from quart import Response

from ...agent.node import Node
from ...protocols.access import Role
from ...protocols.errors import UnsupportedMediaType
from ...protocols.image import Image, ImageRef
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import FleetVms
from ..rest.metrics import Metrics, exposition
from ..rest.requests import current_request
from ..rest.responses import json_response
from ..rest.routes import Route
from . import audit, console, events, guest_files, guest_sockets, operations
from .listing import Listing

NAME = "AI Environment Manager API"
_OCTETS = "application/octet-stream"


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /` for programs."""

    name: str
    version: str
    endpoints: list[str]


class ImportQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`raw` takes what cannot be recognised as a disk for a raw one."""

    name: ImageRef
    raw: bool = False


def routes(node: Node, metrics: Metrics) -> Iterator[Route]:
    """Yield the routes of `node`."""
    yield from operations.routes(node)
    yield events.route(node.events, node.tokens)
    yield from console.routes(node)
    yield from guest_sockets.routes(node)
    yield from guest_files.routes(node)
    yield _import_route(node)
    yield _fleet_route(node)
    yield audit.route(node)
    yield _metrics_route(node, metrics)


def root_body(node: Node) -> Root:
    """Return what `GET /` answers: the endpoints of the original document first, then ours."""
    documented = ["/api/vm", "/api/p2p", "/api/remote"]
    own = ["/api/image", "/api/operations", "/api/tokens", "/api/events", "/api/fleet/vm", "/api/health"]
    more = ["/api/v1", "/api/openapi.json", "/swagger-ui", "/metrics"]
    return Root(name=NAME, version=node.version, endpoints=[*documented, *own, *more])


def _import_route(node: Node) -> Route:
    """`POST /api/image/import?name=…`: a disk as the body."""

    async def view() -> Response:
        request = current_request()
        query = request.query_as(ImportQuery)
        kind = request.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != _OCTETS.encode():
            raise UnsupportedMediaType(f"an image is uploaded as {_OCTETS}")
        content = request.upload()
        return json_response(await node.import_image(request.caller, query.name, content, raw=query.raw))

    endpoint = Endpoint(
        verb="POST", path="/api/image/import", operation_id="import_image", tag="image", role=Role.OPERATOR,
        summary="Upload a qcow2 or raw disk as an image.", answers={200: Media(Image)}, query=ImportQuery,
        body=Media({"type": "string", "format": "binary"}, _OCTETS), body_required=True,
    )  # fmt: skip
    return Route("POST", endpoint.path, "import_image", view, endpoint)


def _fleet_route(node: Node) -> Route:
    """`GET /api/fleet/vm`: the VMs of every known peer."""
    listing = Listing(FleetVms)

    async def view() -> Response:
        request = current_request()
        _, page = listing.read(request.query_pairs())
        found = await node.fleet_vms(request.caller)
        return json_response(found if page is None else page.of(found))

    endpoint = Endpoint(
        verb="GET", path="/api/fleet/vm", operation_id="list_fleet_vms", tag="fleet", role=Role.VIEWER,
        summary="List the VMs of every known peer, and the peers that could not be asked for theirs.",
        answers={200: Media(FleetVms)}, query=listing.query,
    )  # fmt: skip
    return Route("GET", endpoint.path, "list_fleet_vms", view, endpoint)


def _metrics_route(node: Node, metrics: Metrics) -> Route:
    """`GET /metrics`, for Prometheus."""

    async def view() -> Response:
        media_type, text = await exposition(node, metrics)
        return Response(text, content_type=media_type)

    endpoint = Endpoint(
        verb="GET", path="/metrics", operation_id="metrics", tag="node", role=Role.VIEWER,
        summary="Show the node's metrics, for Prometheus.",
        answers={200: Media({"type": "string"}, "text/plain", "Prometheus text format.")},
    )  # fmt: skip
    return Route("GET", endpoint.path, "metrics", view, endpoint)
