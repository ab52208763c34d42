"""Websockets into guests, here and at a peer: a session that is attached to, an SSH server, a TCP port.

The messages are those of protocols/guest_socket.py. The close frame says why it ended: normally when the command, or
the connection, has come to its end. A session goes on when its websocket is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from quart import Response

from ...agent.guest.port import GuestStream
from ...agent.node import Node
from ...protocols.access import Role
from ...protocols.console import CLOSED_NORMALLY
from ...protocols.errors import UpgradeRequired
from ...protocols.guest import Offset, SessionId, WriterId
from ...protocols.guest_socket import NodeEnd
from ...protocols.guest_stream import AttachSession, DialPort, DialSsh, Finished, StreamRequest
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import PeerRef
from ...protocols.services import Port
from ...protocols.vm import VmRef
from ..rest.requests import Incoming, NoQuery, RestWebsocket, current_request, current_websocket
from ..rest.routes import Route
from .relay import WebsocketRelay, check_path


class AttachQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`offset` is the first byte of output that is wanted; without it, the first that is kept.

    `writer`, from the first `opened`, is for a client that attaches again and sends input again.
    """

    offset: Offset | None = None
    writer: WriterId = ""


Ask = Callable[[Incoming, Mapping[str, str]], StreamRequest]


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of stream: its route below a VM, and what a handshake asks for."""

    path: str
    name: str
    summary: str
    ask: Ask
    params: Mapping[str, Any] = field(default_factory=dict)
    query: type[msgspec.Struct] | None = None


def _attach(incoming: Incoming, path: Mapping[str, str]) -> StreamRequest:
    query = incoming.query_as(AttachQuery)
    return AttachSession(session=path["session"], offset=query.offset, writer=query.writer)


def _ssh(incoming: Incoming, path: Mapping[str, str]) -> StreamRequest:
    incoming.query_as(NoQuery)
    return DialSsh()


def _port(incoming: Incoming, path: Mapping[str, str]) -> StreamRequest:
    incoming.query_as(NoQuery)
    return DialPort(port=int(path["port"]))


_KINDS = (
    _Kind(
        path="/vm/<vm>/sessions/<session>/attach",
        name="attach_session",
        summary="Attach to a session in the guest: a websocket.",
        ask=_attach,
        params={"session": SessionId},
        query=AttachQuery,
    ),
    _Kind(
        path="/vm/<vm>/ssh",
        name="dial_guest_ssh",
        summary="Connect to an SSH server in the guest, which needs no network: a websocket.",
        ask=_ssh,
    ),
    _Kind(
        path="/vm/<vm>/dial/<port>",
        name="dial_guest",
        summary="Connect to a TCP port of the guest's own loopback: a websocket.",
        ask=_port,
        params={"port": Port},
    ),
)


def routes(node: Node) -> Iterator[Route]:
    """Yield the routes here and those to peers."""
    for kind in _KINDS:
        yield from _routes(node, kind)


def _routes(node: Node, kind: _Kind) -> Iterator[Route]:
    kinds: dict[str, Any] = {**kind.params, "vm": VmRef, "peer": PeerRef}

    async def refuse(**given: str) -> Response:
        check_path(given, kinds)
        kind.ask(current_request(), given)
        raise UpgradeRequired("this is a websocket: ask with Upgrade: websocket (RFC 6455)")

    async def serve(**given: str) -> None:
        websocket = current_websocket()
        check_path(given, kinds)
        asked = kind.ask(websocket, given)
        async with node.guest_stream(websocket.caller, given["vm"], asked, given.get("peer")) as stream:
            await websocket.accept()
            websocket.connection.endless = True
            await _GuestRelay(websocket, stream).run()
            await websocket.close(CLOSED_NORMALLY)

    for root, prefix, params in (("/api", "", {}), ("/api/remote/<peer>", "remote_", {"peer": PeerRef})):
        endpoint = Endpoint(
            verb="GET",
            path=root + kind.path,
            operation_id=prefix + kind.name,
            summary=kind.summary,
            tag="remote" if params else "vm",
            answers={101: Media(None, description="Binary messages both ways, and text messages in JSON.")},
            role=Role.OPERATOR,
            path_params={**params, "vm": VmRef, **kind.params},
            query=kind.query,
        )
        yield Route("GET", root + kind.path, prefix + kind.name, refuse, endpoint, websocket=serve)


class _GuestRelay(WebsocketRelay):
    """One client at a stream into a guest."""

    def __init__(self, websocket: RestWebsocket, stream: GuestStream) -> None:
        super().__init__(websocket)
        self._stream = stream
        self._end = NodeEnd(stream.opened)

    async def relay_output(self) -> None:
        await self.websocket.send(self._end.first)
        while True:
            message = await self._stream.receive()
            parts: list[Any] = self._end.messages(message)
            for part in parts:
                await self.websocket.send(part)
            if isinstance(message, Finished):
                return

    async def take(self, message: str | bytes) -> None:
        for part in self._end.read(message):
            await self._stream.send(part)
