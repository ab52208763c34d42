"""`GET /api/vm/<vm>/console`, and the same of a peer: the serial console of a running VM as a websocket.

Messages are the console's bytes, both ways; a text message is typed as UTF-8. The close frame says why it ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import msgspec
import trio

from ...agent.node import Node
from ...agent.reach.consoles import Console
from ...protocols.access import Caller, Role
from ...protocols.console import CLOSED_NORMALLY, HEARTBEAT, SILENCE
from ...protocols.errors import (
    InvalidRequest,
    RequestTimeout,
    TwinshareError,
    Unauthenticated,
    UpgradeRequired,
    WrongState,
)
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import PeerRef
from ...protocols.vm import VmRef
from .answer import Answer
from .request import NoQuery, Request
from .router import Route

Holds = Callable[[Caller], bool]


def routes(node: Node, holds: Holds) -> Iterator[Route]:
    """The route here and the route to peers. `holds` tells whether a caller may still come in."""

    async def view(request: Request) -> Answer | None:
        request.caller.require(Role.OPERATOR, "open_console")
        request.fields(NoQuery)
        vm = _checked(request, "vm", VmRef)
        peer = _checked(request, "peer", PeerRef) if "peer" in request.params else None
        if not request.websocket:
            raise UpgradeRequired("this is a websocket: ask with Upgrade: websocket (RFC 6455)")
        async with node.console(request.caller, vm, peer) as console:
            await request.accept()
            request.link.endless = True
            why = await _Visit(request, console, holds).run()
            if why is not None:
                await request.close(why, CLOSED_NORMALLY if isinstance(why, WrongState) else None)
        return None

    for path, name, more in (
        ("/api/vm/<vm>/console", "open_console", {}),
        ("/api/remote/<peer>/vm/<vm>/console", "remote_open_console", {"peer": PeerRef}),
    ):
        told = Endpoint(
            verb="GET",
            path=path,
            operation_id=name,
            summary="Use the serial console of a running VM: a websocket of binary messages, both ways.",
            tag="remote" if more else "vm",
            answers={101: Media(None, description="The console, until the VM stops or the client leaves.")},
            role=Role.OPERATOR,
            path_params={**more, "vm": VmRef},
        )
        yield Route("GET", path, name, view, told, websocket=True)


def _checked(request: Request, name: str, kind: object) -> str:
    """Raises: InvalidRequest."""
    try:
        return str(msgspec.convert(request.params[name], kind))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{name}: {error}", path=name) from None


class _Visit:
    """One client at a console."""

    def __init__(self, request: Request, console: Console, holds: Holds) -> None:
        self._request, self._console, self._holds = request, console, holds
        self._why: TwinshareError | None = None
        self._scope = trio.CancelScope()
        self._typing = False

    async def run(self) -> TwinshareError | None:
        """Until either side ends it; tells why, or None when the client has left."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for part in (self._listen, self._type, self._beat):
                    nursery.start_soon(self._until_it_ends, part)
        return self._why

    async def _until_it_ends(self, part: Callable[[], Awaitable[None]]) -> None:
        """No domain error leaves this task."""
        try:
            await part()
        except TwinshareError as error:
            self._why = self._why or error
        self._scope.cancel()

    async def _listen(self) -> None:
        while True:
            said = await self._console.receive()
            self._check()
            await self._request.tell(said)

    async def _type(self) -> None:
        while (typed := await self._request.message()) is not None:
            self._check()
            self._typing = True
            await self._console.send(typed)
            self._typing = False

    async def _beat(self) -> None:
        """What keeps a proxy from closing it, and tells that the client is there."""
        while True:
            await trio.sleep(HEARTBEAT)
            self._check()
            # While a guest does not read what is typed, we do not read on either.
            if not self._typing and trio.current_time() - self._request.link.heard_at > SILENCE:
                raise RequestTimeout("the client answers no ping")
            await self._request.ping()

    def _check(self) -> None:
        """Raises: Unauthenticated."""
        if not self._holds(self._request.caller):
            raise Unauthenticated("the token was revoked or has expired")
