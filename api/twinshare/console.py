"""`GET /api/vm/<vm>/console` and `…/screen`, and the same of a peer: the console, the screen of a VM as a websocket.

Messages are the console's bytes, or those of RFB, both ways; a text message is typed as UTF-8. The close frame says
why it ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import trio
from quart import Response

from ...agent.node import Node
from ...agent.reach.consoles import Console
from ...agent.tokens import TokenStore
from ...protocols.access import Caller, Role
from ...protocols.console import CLOSED_NORMALLY, HEARTBEAT, SILENCE
from ...protocols.errors import (
    InvalidRequest,
    RequestTimeout,
    TwinshareError,
    UpgradeRequired,
    WrongState,
)
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import PeerRef
from ...protocols.vm import VmRef
from ..rest.requests import Incoming, NoQuery, RestWebsocket, current_request, current_websocket
from ..rest.routes import Route, WebsocketView

Open = Callable[[Caller, str, str | None], AbstractAsyncContextManager[Console]]


def routes(node: Node) -> Iterator[Route]:
    """Yield for the console and for the screen the route here and the route to peers."""
    console = "Use the serial console of a running VM: a websocket of binary messages, both ways."
    screen = "Use the screen of a running VM: a websocket of binary messages, RFB (RFC 6143) both ways."
    for kind, opened, summary in (("console", node.console, console), ("screen", node.screen, screen)):
        for root, name, more in (("/api", "open", {}), ("/api/remote/<peer>", "remote_open", {"peer": PeerRef})):
            endpoint = Endpoint(
                verb="GET",
                path=f"{root}/vm/<vm>/{kind}",
                operation_id=f"{name}_{kind}",
                summary=summary,
                tag="remote" if more else "vm",
                answers={101: Media(None, description=f"The {kind}, until the VM stops or the client leaves.")},
                role=Role.OPERATOR,
                path_params={**more, "vm": VmRef},
            )
            serve = _serving(opened, node.tokens)
            yield Route("GET", endpoint.path, endpoint.operation_id, _refuse, endpoint, websocket=serve)


async def _refuse(vm: str, peer: str | None = None) -> Response:
    _check(current_request(), vm, peer)
    raise UpgradeRequired("this is a websocket: ask with Upgrade: websocket (RFC 6455)")


def _serving(opened: Open, tokens: TokenStore) -> WebsocketView:
    async def serve(vm: str, peer: str | None = None) -> None:
        websocket = current_websocket()
        _check(websocket, vm, peer)
        async with opened(websocket.caller, vm, peer) as stream:
            await websocket.accept()
            websocket.connection.endless = True
            try:
                with websocket.bound(tokens):
                    await _Session(websocket, stream).run()
            except WrongState as stopped:
                await websocket.end(stopped, CLOSED_NORMALLY)

    return serve


def _check(incoming: Incoming, vm: str, peer: str | None) -> None:
    """Raises: InvalidRequest."""
    incoming.query_as(NoQuery)
    names: list[tuple[str, str | None, Any]] = [("vm", vm, VmRef), ("peer", peer, PeerRef)]
    for name, value, kind in names:
        try:
            if value is not None:
                msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{name}: {error}", path=name) from None


class _Session:
    """One client at a console."""

    def __init__(self, websocket: RestWebsocket, console: Console) -> None:
        self._websocket, self._console = websocket, console
        self._error: TwinshareError | None = None
        self._typing = False

    async def run(self) -> None:
        """Relay until either side ends it. Raises: why the console ended."""
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
            output = await self._console.receive()
            await self._websocket.send(output)

    async def _relay_input(self) -> None:
        while True:
            # Quart gives an empty message as None.
            typed = await self._websocket.receive() or b""
            self._typing = True
            await self._console.send(typed.encode() if isinstance(typed, str) else typed)
            self._typing = False

    async def _watch_client(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            # While a guest does not read what is typed, we do not read on either.
            if not self._typing and trio.current_time() - self._websocket.connection.heard_at > SILENCE:
                raise RequestTimeout("the client answers no ping")
