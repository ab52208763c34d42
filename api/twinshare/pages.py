"""The pages and their files: `GET /` for browsers, `/swagger-ui`, `/web/…`, and the link that opens them."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import trio
from quart import Response

from ...protocols.access import Role
from ...protocols.errors import NotFound, Unauthenticated
from ...protocols.openapi import Endpoint, Media
from ..rest.requests import NoQuery, current_request
from ..rest.responses import json_response
from ..rest.routes import Route, View
from ..rest.sessions import LINK_LIFE, Sessions

_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml"}

# The one route that needs no caller: its address is the secret.
OPEN_ENDPOINT = "pages.enter"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A link that opens the page in a browser, once, until `expires`."""

    link: str
    expires: datetime


def files(directory: Path) -> Iterator[Route]:
    """Yield the routes of `/swagger-ui` and of every file that is there."""
    views = {file.relative_to(directory).as_posix(): _serving(file) for file in directory.rglob("*") if file.is_file()}

    async def view(file: str) -> Response:
        if file not in views:
            raise NotFound(f"there is nothing at /web/{file}")
        return await views[file]()

    for path, name in (("/swagger-ui", "swagger_ui"), ("/swagger-ui/", "swagger_ui_folder")):
        yield Route("GET", path, name, views["swagger.html"])
    yield Route("GET", "/web/<path:file>", "file", view)


def root_routes(directory: Path, root: msgspec.Struct) -> Iterator[Route]:
    """Yield `GET /`: the page for browsers, `root` for programs."""
    page = _serving(directory / "index.html")

    async def view() -> Response:
        if b"text/html" in current_request().fields.get(b"accept", b""):
            return await page()
        return json_response(root)

    endpoint = Endpoint(
        verb="GET", path="/", operation_id="root", tag="node", summary="Show what this is; browsers get the page.",
        answers={200: Media(type(root))},
    )  # fmt: skip
    yield Route("GET", "/", "root", view, endpoint)


def _serving(file: Path) -> View:
    kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file)[0] or "application/octet-stream"
    content_type = kind + ("; charset=utf-8" if kind.startswith("text/") else "")

    async def view() -> Response:
        return Response(await trio.Path(file).read_bytes(), content_type=content_type)

    return view


def session_routes(sessions: Sessions, url: str, cookie: str) -> Iterator[Route]:
    """`POST /api/session` hands out a link; opening it once within a minute lets that browser in."""

    async def invite() -> Response:
        request = current_request()
        request.query_as(NoQuery)
        key = sessions.invite(request.caller, trio.current_time())
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=LINK_LIFE)
        return json_response(Session(link=f"{url}/enter/{key}", expires=expires))

    async def enter(key: str) -> Response:
        session = sessions.enter(key, trio.current_time())
        if session is None:
            raise Unauthenticated("this link was used or is too old; ask for a new one (`twinshare status --open`)")
        response = Response(b"", 303, {"location": "/"})
        secure = current_request().connection.secure
        response.set_cookie(cookie, session, httponly=True, samesite="Strict", secure=secure)
        return response

    endpoint = Endpoint(
        verb="POST", path="/api/session", operation_id="open_session", tag="node", role=Role.VIEWER,
        summary="Make a link that opens the page in a browser, once, within a minute.",
        answers={200: Media(Session)},
    )  # fmt: skip
    yield Route("POST", endpoint.path, "open_session", invite, endpoint)
    yield Route("GET", "/enter/<key>", "enter", enter)
