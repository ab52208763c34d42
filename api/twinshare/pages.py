"""The pages and their files: `GET /` for browsers, `/swagger-ui`, `/web/…`, compressed when the browser takes that."""

from __future__ import annotations

import functools
import gzip
import mimetypes
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio
from quart import Response

from ...protocols.errors import NotFound
from ...protocols.openapi import Endpoint, Media
from ..rest.requests import current_request
from ..rest.responses import json_response
from ..rest.routes import Route, View

_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml"}


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
        if not content_type.startswith("text/") or not _takes_gzip(
            current_request().fields.get(b"accept-encoding", b"")
        ):
            return Response(await trio.Path(file).read_bytes(), content_type=content_type)
        # A bundle of a megabyte takes too long for the loop.
        data = await trio.to_thread.run_sync(_compressed, file)
        return Response(
            data, headers={"content-encoding": "gzip", "vary": "accept-encoding"}, content_type=content_type
        )

    return view


def _takes_gzip(accepted: bytes) -> bool:
    return any(one.partition(b";")[0].strip() == b"gzip" and b"q=0" not in one for one in accepted.split(b","))


@functools.cache
def _compressed(file: Path) -> bytes:
    """The pages hold no secret, so that their size tells nothing."""
    return gzip.compress(file.read_bytes(), mtime=0)
