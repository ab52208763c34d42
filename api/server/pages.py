"""The pages and their files, by Quart: `GET /` for browsers, `/swagger-ui`, and `/web/…`.

Quart is loaded when the first page is asked for, in a worker thread: a node that nobody looks at does without it.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from ...protocols.openapi import Endpoint, Media
from .answer import PROTECTION, Answer, told
from .request import Message, Request
from .router import Route

if TYPE_CHECKING:
    from quart_trio import QuartTrio

_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml"}


class Pages:
    """The files under `directory`; `root` is what `GET /` tells programs."""

    def __init__(self, directory: Path, root: Any) -> None:
        self._directory = directory
        self._root = root
        self._app: QuartTrio | None = None
        self._loading = trio.Lock()

    def routes(self) -> Iterator[Route]:
        """A route for each page and each file that is there."""
        endpoint = Endpoint(
            verb="GET", path="/", operation_id="root", tag="node", summary="Tell what this is; browsers get the page.",
            answers={200: Media(type(self._root))},
        )  # fmt: skip
        yield Route("GET", "/", "root", self._index, endpoint)
        yield Route("GET", "/swagger-ui", "page", self._page)
        for file in sorted(self._directory.rglob("*")):
            if file.is_file():
                yield Route("GET", f"/web/{file.relative_to(self._directory).as_posix()}", "page", self._page)

    async def _index(self, request: Request) -> Answer | None:
        if b"text/html" in request.headers.get(b"accept", b""):
            await self._page(request)
            return None
        return told(self._root)

    async def _page(self, request: Request) -> None:
        app = await self._quart()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.begun = True
                message["headers"] = [*message["headers"], *PROTECTION]
            await request.send(message)

        await app(request.scope, request.receive, send)  # type: ignore[arg-type]  # hypercorn's TypedDicts of the same

    async def _quart(self) -> QuartTrio:
        async with self._loading:
            if self._app is None:
                self._app = await trio.to_thread.run_sync(_make, self._directory)
        return self._app


def _make(directory: Path) -> QuartTrio:
    from quart import Response
    from quart_trio import QuartTrio

    app = QuartTrio(__name__, static_folder=None)
    # An exception is answered at the one border of the face.
    app.config["PROPAGATE_EXCEPTIONS"] = True

    async def serve(file: str) -> Response:
        kind = _TYPES.get(Path(file).suffix) or mimetypes.guess_type(file)[0] or "application/octet-stream"
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        return Response(await trio.Path(directory / file).read_bytes(), content_type=kind + charset)

    app.add_url_rule("/", "index", serve, defaults={"file": "index.html"})
    app.add_url_rule("/swagger-ui", "swagger", serve, defaults={"file": "swagger.html"})
    app.add_url_rule("/web/<path:file>", "file", serve)
    return app
