"""Sessions of browsers: the link that opens one, who the caller is, which there are, and their end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import trio
from quart import Response

from ...protocols.access import Caller, Role
from ...protocols.errors import NotFound, Unauthenticated
from ...protocols.openapi import Endpoint, Media
from ..rest.requests import NoQuery, current_request
from ..rest.responses import json_response
from ..rest.routes import Route
from ..rest.sessions import LINK_LIFE, Session, Sessions

# The one route that needs no caller: its address is the secret.
OPEN_ENDPOINT = "pages.enter"
MAX_AGENT = 200


class SessionLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link that opens the page in a browser, once, until `expires`."""

    link: str
    expires: datetime


class CurrentSession(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and in which session of a browser, if in any."""

    principal: str
    role: Role
    session: str | None = None


class BrowserSession(msgspec.Struct, frozen=True, kw_only=True):
    """One browser that was let in by a link; `agent` is what it calls itself."""

    id: str
    principal: str
    role: Role
    opened_at: datetime
    expires_at: datetime
    agent: str

    @classmethod
    def of(cls, session: Session) -> BrowserSession:
        caller = session.caller
        return cls(
            id=session.id, principal=caller.principal, role=caller.role, opened_at=session.opened_at,
            expires_at=session.expires_at, agent=session.agent,
        )  # fmt: skip


class SessionList(msgspec.Struct, frozen=True, kw_only=True):
    sessions: list[BrowserSession]


def routes(sessions: Sessions, url: str, cookie: str) -> Iterator[Route]:
    """Yield the routes of sessions. Opening the link of `POST /api/session` once within a minute lets a browser in."""
    yield _invite_route(sessions, url)
    yield _enter_route(sessions, cookie)
    yield _current_route()
    yield _list_route(sessions)
    yield _end_route(sessions)


def _invite_route(sessions: Sessions, url: str) -> Route:
    async def view() -> Response:
        request = current_request()
        request.query_as(NoQuery)
        key = sessions.invite(request.caller, trio.current_time())
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=LINK_LIFE)
        return json_response(SessionLink(link=f"{url}/enter/{key}", expires=expires))

    summary = "Make a link that opens the page in a browser, once, within a minute."
    return _described("POST", "/api/session", "open_session", summary, SessionLink, view)


def _enter_route(sessions: Sessions, cookie: str) -> Route:
    async def view(key: str) -> Response:
        request = current_request()
        agent = request.fields.get(b"user-agent", b"").decode("latin-1")[:MAX_AGENT]
        session = sessions.enter(key, trio.current_time(), agent)
        if session is None:
            raise Unauthenticated("this link was used or is too old; ask for a new one (`twinshare ui`)")
        response = Response(b"", 303, {"location": "/"})
        response.set_cookie(cookie, session, httponly=True, samesite="Strict", secure=request.connection.secure)
        return response

    return Route("GET", "/enter/<key>", "enter", view)


def _current_route() -> Route:
    async def view() -> Response:
        request = current_request()
        request.query_as(NoQuery)
        caller, session = request.caller, request.session
        return json_response(
            CurrentSession(principal=caller.principal, role=caller.role, session=session.id if session else None)
        )

    return _described("GET", "/api/session", "show_session", "Show who the caller is.", CurrentSession, view)


def _list_route(sessions: Sessions) -> Route:
    async def view() -> Response:
        request = current_request()
        request.query_as(NoQuery)
        found = [BrowserSession.of(one) for one in sessions.list(trio.current_time()) if _sees(request.caller, one)]
        return json_response(SessionList(sessions=found))

    summary = "List the sessions of browsers: an admin sees all, others their own."
    return _described("GET", "/api/sessions", "list_sessions", summary, SessionList, view)


def _end_route(sessions: Sessions) -> Route:
    async def view(id: str) -> Response:
        request = current_request()
        request.query_as(NoQuery)
        if not any(one.id == id and _sees(request.caller, one) for one in sessions.list(trio.current_time())):
            raise NotFound(f"there is no session '{id}'")
        return json_response(BrowserSession.of(sessions.end(id)))

    summary = "End a session of a browser at once, with the streams and consoles that it has opened."
    return _described("DELETE", "/api/sessions/<id>", "end_session", summary, BrowserSession, view)


def _sees(caller: Caller, session: Session) -> bool:
    return caller.role is Role.ADMIN or session.caller.principal == caller.principal


def _described(verb: str, path: str, name: str, summary: str, answer: type, view: object) -> Route:
    params = {"id": str} if "<id>" in path else {}
    endpoint = Endpoint(
        verb=verb, path=path, operation_id=name, tag="node", role=Role.VIEWER, summary=summary,
        answers={200: Media(answer)}, path_params=params,
    )  # fmt: skip
    return Route(verb, path, name, view, endpoint)  # type: ignore[arg-type]  # views differ in their placeholders
