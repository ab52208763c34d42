"""Every operation of the table under `/api`, and again under `/api/remote/<peer>` for peers.

The documented bodies are made in `protocols/bodies.py`; here an operation becomes a route and a response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from quart import Response

from ...agent.node import Node
from ...protocols.bodies import Body, body_type, present
from ...protocols.errors import InvalidRequest
from ...protocols.method import Method
from ...protocols.openapi import Endpoint, Media, endpoint
from ...protocols.peer import PeerRef
from ...protocols.services import SERVICES
from ...protocols.table import all_methods
from ...protocols.vm import Blob
from ..rest.requests import RestRequest, current_request, request_options
from ..rest.responses import EncodedList, json_response
from ..rest.routes import Route, View
from .listing import Listing, Page
from .newest_first import read_page

ROOT = "/api"
REMOTE = "/api/remote/<peer>"
TABLE = all_methods(SERVICES)

# The lists whose bodies have a cursor take the parameters of listings.
LISTINGS = {
    name: Listing(method.answer, method.query)
    for name, method in TABLE.items()
    if isinstance(method.answer, type) and issubclass(method.answer, Body) and "next" in method.answer.__struct_fields__
}


def routes(node: Node) -> Iterator[Route]:
    """Yield one route for each operation, and one more for each that peers offer too."""
    for method in TABLE.values():
        yield Route(method.verb, ROOT + method.path, method.name, _view(node, method), _endpoint(method))
    for method in TABLE.values():
        if not method.local:
            described = _endpoint(method, remote=True)
            yield Route(
                method.verb, REMOTE + method.path, described.operation_id, _remote_view(node, method), described
            )


def _view(node: Node, method: Method) -> View:
    encode = EncodedList(LISTINGS[method.name].key).encode if method.cached_rows else None

    async def view(**params: str) -> Response:
        request = current_request()
        query, page = _query(method, request)
        arguments = method.arguments(params, query, await request.json_body())
        call = partial(node.call, request_options(request, method), method)
        if method.newest and page is not None:
            return json_response(await read_page(method, call, arguments, page))
        return _response(method, await call(arguments), None, encode, page)

    return view


def _remote_view(node: Node, method: Method) -> View:
    async def view(peer: str, **params: str) -> Response:
        _check_peer(peer)
        request = current_request()
        query, page = _query(method, request)
        arguments = method.arguments(params, query, await request.json_body())
        call = partial(node.call, request_options(request, method), method, peer=peer)
        if method.newest and page is not None:
            return json_response(await read_page(method, call, arguments, page))
        return _response(method, await call(arguments), node.peer_id_of(peer), page=page)

    return view


def _check_peer(peer: str) -> None:
    """Raises: InvalidRequest."""
    try:
        msgspec.convert(peer, PeerRef)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"peer: {error}", path="peer") from None


def _query(method: Method, request: RestRequest) -> tuple[dict[str, str], Page | None]:
    """Return the parameters of the method, and what part of its listing is wanted. Raises: InvalidRequest."""
    listing = LISTINGS.get(method.name)
    return listing.read(request.query_pairs()) if listing is not None else (request.arguments(), None)


def _response(
    method: Method,
    result: Any,
    peer: str | None,
    encode: Callable[[Any], bytes] | None = None,
    page: Page | None = None,
) -> Response:
    if isinstance(result, Blob):
        return Response(result.data, content_type=result.media_type)
    if page is not None:
        return json_response(page.of(present(method, result, peer)))
    if method.newest and len(result) == method.newest:
        following = LISTINGS[method.name].whole.cursor_at(result[-1])
        return json_response(msgspec.structs.replace(present(method, result, peer), next=following))
    return json_response(encode(result) if encode is not None else present(method, result, peer))


def _endpoint(method: Method, *, remote: bool = False) -> Endpoint:
    answer = (
        Media({"type": "string", "format": "binary"}, "image/png", "The picture.")
        if method.result is Blob
        else Media(body_type(method, remote=remote))
    )
    name = f"remote_{method.name}" if remote else method.name
    tag = "remote" if remote else method.path.split("/")[1]
    more = {"peer": PeerRef} if remote else {}
    path = (REMOTE if remote else ROOT) + method.path
    described = endpoint(method, path, {200: answer}, operation_id=name, tag=tag, more_params=more)
    listing = LISTINGS.get(method.name)
    return described if listing is None else replace(described, query=listing.query)
