"""`GET /api/vm/<vm>/console` and `…/screen`, and the same of a peer: the console, the screen of a VM as a websocket.

Messages are the console's bytes, or those of RFB, both ways; a text message is typed as UTF-8. The close frame says
why it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

from quart import Response

from ...agent.node import Node
from ...agent.reach.consoles import Console
from ...protocols.access import Caller, Role
from ...protocols.console import CLOSED_NORMALLY
from ...protocols.errors import (
    UpgradeRequired,
    WrongState,
)
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import PeerRef
from ...protocols.vm import VmRef
from ..rest.requests import Incoming, NoQuery, RestWebsocket, current_request, current_websocket
from ..rest.routes import Route, WebsocketView
from .relay import WebsocketRelay, check_path

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
            serve = _serving(opened)
            yield Route("GET", endpoint.path, endpoint.operation_id, _refuse, endpoint, websocket=serve)


async def _refuse(vm: str, peer: str | None = None) -> Response:
    _check(current_request(), vm, peer)
    raise UpgradeRequired("this is a websocket: ask with Upgrade: websocket (RFC 6455)")


def _serving(opened: Open) -> WebsocketView:
    async def serve(vm: str, peer: str | None = None) -> None:
        websocket = current_websocket()
        _check(websocket, vm, peer)
        async with opened(websocket.caller, vm, peer) as stream:
            await websocket.accept()
            websocket.connection.endless = True
            try:
                await _ConsoleRelay(websocket, stream).run()
            except WrongState as stopped:
                await websocket.end(stopped, CLOSED_NORMALLY)

    return serve


def _check(incoming: Incoming, vm: str, peer: str | None) -> None:
    """Raises: InvalidRequest."""
    incoming.query_as(NoQuery)
    check_path({"vm": vm, "peer": peer}, {"vm": VmRef, "peer": PeerRef})


class _ConsoleRelay(WebsocketRelay):
    """One client at a console or a screen: bytes both ways."""

    def __init__(self, websocket: RestWebsocket, console: Console) -> None:
        super().__init__(websocket)
        self._console = console

    async def relay_output(self) -> None:
        while True:
            output = await self._console.receive()
            await self.websocket.send(output)

    async def take(self, message: str | bytes) -> None:
        await self._console.send(message.encode() if isinstance(message, str) else message)
