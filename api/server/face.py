"""The ASGI application: guard, route, view, answer, for each request.

Operations, events and uploads are served right here; pages and documents by the Quart application behind it.
This is the one border where an exception of any kind becomes an answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import structlog
import trio

from ...protocols.errors import NotFound, TwinshareError, Unavailable
from ...protocols.operation import Detached, Operation
from .answer import Answer, Header, told
from .guard import Guard
from .link import Link
from .metrics import Metrics
from .request import Message, Receive, Request, Send
from .router import Route, Router

log = structlog.get_logger(__name__)

Application = Callable[[Message, Receive, Send], Awaitable[None]]

_SHOWN_AS = {"HEAD": "GET"}
_CORS_HEADERS = b"authorization, content-type, idempotency-key, last-event-id, prefer"


class Face:
    """One node's REST interface."""

    def __init__(self, router: Router, guard: Guard, metrics: Metrics, max_body: int) -> None:
        self._router = router
        self._guard = guard
        self._metrics = metrics
        self._max_body = max_body

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        link: Link = scope["state"]["link"]
        started = trio.current_time()
        request = Request(scope, receive, send, link, self._max_body)
        request.refuse = self._router.refuse(request.path)
        with link.begin() as hung_up:
            answer = await self._serve(request)
            status = answer.status if answer is not None else 200
            if answer is not None:
                await self._reply(request, answer)
        if hung_up.cancelled_caught:
            status = 499
            if link.stopping:
                await self._say_goodbye(request)
        if not link.endless:
            self._note(request, status, trio.current_time() - started)

    async def _say_goodbye(self, request: Request) -> None:
        stopping = Unavailable("the node is stopping; try again when it is back")
        if request.websocket and request.begun:
            await request.close(stopping)
        else:
            await self._reply(request, request.refuse(stopping))

    def _note(self, request: Request, status: int, seconds: float) -> None:
        """Names, never paths: a path can hold a secret."""
        self._metrics.count(request.name, status, seconds)
        who = request.admitted.principal if request.admitted is not None else None
        log.debug("request", operation=request.name, status=status, milliseconds=round(seconds * 1e3, 1), caller=who)

    async def _reply(self, request: Request, answer: Answer) -> None:
        origin = request.headers.get(b"origin")
        if origin is not None and origin in self._guard.origins:
            answer.headers = (*answer.headers, (b"access-control-allow-origin", origin), (b"vary", b"origin"))
        await request.reply(answer)

    async def _serve(self, request: Request) -> Answer | None:
        """The answer, or None when the view has sent it itself."""
        try:
            request.check_single()
            self._guard.check_site(request)
            if request.verb == "OPTIONS":
                return self._options(request)
            route = self._find(request)
            return await route.view(request)
        except TwinshareError as error:
            return request.refuse(error)
        except Detached as detached:
            return _accepted(request, detached.operation)
        except Exception:
            # A bug: the client gets an id, the log what belongs to it.
            id = secrets.token_hex(8)
            log.exception("a request failed by a bug", id=id, operation=request.name)
            return request.refuse(TwinshareError(f"internal error; the node's log tells more under {id}", id=id))

    def _find(self, request: Request) -> Route:
        """The route, for a caller who may come in; whoever may not learns nothing of what there is."""
        now = trio.current_time()
        try:
            route, request.params = self._router.match(_SHOWN_AS.get(request.verb, request.verb), request.path)
        except TwinshareError:
            self._guard.admit(request, now)
            raise
        if not route.open:
            request.admitted = self._guard.admit(request, now)
        if request.websocket and not route.websocket:
            raise NotFound("no websocket is served here")
        request.name, request.refuse = route.name, route.refuse
        if route.told is not None and route.told.role is not None:
            # Before anything of the request is read: who may not call is not told how.
            request.caller.require(route.told.role, route.told.operation_id)
        return route

    def _options(self, request: Request) -> Answer:
        """Which verbs a path takes, and for a listed origin what its pages may send."""
        allow = ", ".join(self._router.allowed(request.path)).encode()
        request.name = "options"
        headers: list[Header] = [(b"allow", allow)]
        if request.headers.get(b"origin") in self._guard.origins:
            headers += [
                (b"access-control-allow-methods", allow),
                (b"access-control-allow-headers", _CORS_HEADERS),
                (b"access-control-max-age", b"600"),
            ]
        return Answer(204, b"", headers=headers)


def _accepted(request: Request, operation: Operation) -> Answer:
    """202, and where the operation can be watched: on the node that does it."""
    segments = request.path.split(b"/")
    root = b"/".join(segments[:4]) if segments[2] == b"remote" else b"/api"
    location = b"%s/operations/%s" % (root, operation.id.encode())
    return told(operation, 202, [(b"location", location), (b"preference-applied", b"respond-async")])
