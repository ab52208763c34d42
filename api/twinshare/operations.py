"""Every operation of the table under `/api`, and again under `/api/remote/<peer>` for peers.

The documented bodies are made in `protocols/bodies.py`; here an operation becomes a route and a response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from quart import Response

from ...agent.node import Node
from ...protocols.bodies import body_type, present
from ...protocols.errors import InvalidRequest
from ...protocols.method import Method
from ...protocols.openapi import Endpoint, Media, endpoint
from ...protocols.peer import PeerRef
from ...protocols.services import SERVICES
from ...protocols.table import all_methods
from ...protocols.vm import Blob
from ..rest.requests import current_request, request_options
from ..rest.responses import EncodedList, json_response
from ..rest.routes import Route, View

ROOT = "/api"
REMOTE = "/api/remote/<peer>"
TABLE = all_methods(SERVICES)

# Long lists, whose rows rarely change between two requests; each with the one key of its body.
_KEPT_LISTS = {"list_vms": "vms", "list_operations": "operations"}


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
    encode = EncodedList(_KEPT_LISTS[method.name]).encode if method.name in _KEPT_LISTS else None

    async def view(**params: str) -> Response:
        request = current_request()
        arguments = method.arguments(params, request.arguments(), await request.json_body())
        result = await node.call(request_options(request, method), method, arguments)
        return _response(method, result, None, encode)

    return view


def _remote_view(node: Node, method: Method) -> View:
    async def view(peer: str, **params: str) -> Response:
        _check_peer(peer)
        request = current_request()
        arguments = method.arguments(params, request.arguments(), await request.json_body())
        result = await node.call(request_options(request, method), method, arguments, peer)
        return _response(method, result, node.peer_id_of(peer))

    return view


def _check_peer(peer: str) -> None:
    """Raises: InvalidRequest."""
    try:
        msgspec.convert(peer, PeerRef)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"peer: {error}", path="peer") from None


def _response(method: Method, result: Any, peer: str | None, encode: Callable[[Any], bytes] | None = None) -> Response:
    if isinstance(result, Blob):
        return Response(result.data, content_type=result.media_type)
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
    return endpoint(method, path, {200: answer}, operation_id=name, tag=tag, more_params=more)
