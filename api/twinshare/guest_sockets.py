"""Websockets into guests, here and at a peer: a session that is attached to, an SSH server, a TCP port.

The messages are those of protocols/guest_socket.py. The close frame says why it ended: normally when the command, or
the connection, has come to its end. A session goes on when its websocket is cut.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from quart import Response

from ...agent.guest.port import GuestStream
from ...agent.node import Node
from ...protocols.access import Role
from ...protocols.console import CLOSED_NORMALLY, HEARTBEAT, SILENCE
from ...protocols.errors import InvalidRequest, RequestTimeout, TwinshareError, UpgradeRequired
from ...protocols.guest import Offset, SessionId
from ...protocols.guest_socket import NodeEnd
from ...protocols.guest_stream import AttachSession, DialPort, DialSsh, Finished, StreamRequest
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import PeerRef
from ...protocols.services import Port
from ...protocols.vm import VmRef
from ..rest.requests import Incoming, NoQuery, RestWebsocket, current_request, current_websocket
from ..rest.routes import Route


class AttachQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`offset` is the first byte of output that is wanted; without it, the first that is kept."""

    offset: Offset | None = None


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
    return AttachSession(session=path["session"], offset=incoming.query_as(AttachQuery).offset)


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
        _check(given, kinds)
        kind.ask(current_request(), given)
        raise UpgradeRequired("this is a websocket: ask with Upgrade: websocket (RFC 6455)")

    async def serve(**given: str) -> None:
        websocket = current_websocket()
        _check(given, kinds)
        asked = kind.ask(websocket, given)
        async with node.guest_stream(websocket.caller, given["vm"], asked, given.get("peer", "local")) as stream:
            await websocket.accept()
            websocket.connection.endless = True
            with websocket.bound(node.tokens):
                await _Relay(websocket, stream).run()
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


def _check(given: Mapping[str, str], kinds: Mapping[str, Any]) -> None:
    """Raises: InvalidRequest naming the part of the path that is wrong."""
    for name, value in given.items():
        try:
            msgspec.convert(value, kinds[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{name}: {error}", path=name) from None


class _Relay:
    """Carries messages between one client and one stream."""

    def __init__(self, websocket: RestWebsocket, stream: GuestStream) -> None:
        self._websocket, self._stream = websocket, stream
        self._end = NodeEnd(stream.opened)
        self._error: TwinshareError | None = None
        self._sending = False

    async def run(self) -> None:
        """Relay until the stream has finished or the client leaves. Raises: why the stream ended."""
        await self._websocket.send(self._end.first)
        async with trio.open_nursery() as nursery:
            for part in (self._relay_output, self._relay_input, self._watch_client):
                nursery.start_soon(self._until_it_ends, part, nursery.cancel_scope)
        if self._error is not None:
            raise self._error

    async def _until_it_ends(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        """No domain error leaves this task."""
        try:
            await part()
        except TwinshareError as error:
            self._error = self._error or error
        scope.cancel()

    async def _relay_output(self) -> None:
        while True:
            message = await self._stream.receive()
            said: list[Any] = self._end.messages(message)
            for part in said:
                await self._websocket.send(part)
            if isinstance(message, Finished):
                return

    async def _relay_input(self) -> None:
        while True:
            # Quart gives an empty message as None.
            said = await self._websocket.receive() or b""
            self._sending = True
            for message in self._end.read(said):
                await self._stream.send(message)
            self._sending = False

    async def _watch_client(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            # While a guest does not read its input, we do not read on either.
            if not self._sending and trio.current_time() - self._websocket.connection.heard_at > SILENCE:
                raise RequestTimeout("the client answers no ping")
