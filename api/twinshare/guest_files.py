"""`GET|PUT /api/vm/<vm>/file?path=`, and the same of a peer: the content of a file in a guest as an octet stream."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from quart import Response
from quart.wrappers.response import ResponseBody

from ...agent.guest.port import GuestStream
from ...agent.node import Node
from ...protocols.access import Role
from ...protocols.errors import InvalidRequest, PeerMisbehaved, RangeNotSatisfiable, UnsupportedMediaType
from ...protocols.guest import Modified, Offset, PathBase64, UserName, WrittenFile, path_bytes
from ...protocols.guest_stream import Finished, Input, InputEnd, Output, ReadFile, WriteFile
from ...protocols.openapi import Endpoint, Media
from ...protocols.peer import PeerRef
from ...protocols.vm import VmRef
from ..rest.requests import RestRequest, current_request
from ..rest.responses import json_response
from ..rest.routes import Route

_OCTETS = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_BINARY = {"type": "string", "format": "binary"}
PathText = Annotated[str, Meta(max_length=4096, description="a path in the guest")]


class FileQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path_base64` names a file whose path is not UTF-8."""

    path: PathText = ""
    path_base64: PathBase64 | None = None


class WriteQuery(FileQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mode` are the permission bits, `modified` seconds since 1970, `user` whose file it is to be.

    A write with an `upload` of the caller's choice (16 to 64 hexadecimal digits) can be cut off: sent again with the
    same one, the body begins at `offset`. 400 says in `details.offset` where the guest has come to, if that is less.
    """

    mode: Annotated[int, Meta(ge=0, le=0o7777)] | None = None
    modified: Modified | None = None
    user: UserName = ""
    size: Offset | None = None
    upload: Annotated[str, Meta(pattern="^([0-9a-f]{16,64})?$")] = ""
    offset: Offset = 0


def routes(node: Node) -> Iterator[Route]:
    """Yield the routes here and those to peers."""

    async def read(vm: str, peer: str | None = None) -> Response:
        return await _read(node, current_request(), vm, peer)

    async def write(vm: str, peer: str | None = None) -> Response:
        return await _write(node, current_request(), vm, peer)

    for root, prefix, params in (("/api", "", {}), ("/api/remote/<peer>", "remote_", {"peer": PeerRef})):
        path = f"{root}/vm/<vm>/file"
        common: dict[str, Any] = {
            "path": path, "tag": "remote" if params else "vm", "role": Role.OPERATOR,
            "path_params": {**params, "vm": VmRef},
        }  # fmt: skip
        reading = Endpoint(
            verb="GET", operation_id=f"{prefix}read_file", query=FileQuery, **common,
            summary="Read a file in the guest, or with a Range header a part of it.",
            answers={200: Media(_BINARY, _OCTETS), 206: Media(_BINARY, _OCTETS, "The part.")},
        )  # fmt: skip
        yield Route("GET", path, f"{prefix}read_file", read, reading)
        writing = Endpoint(
            verb="PUT", operation_id=f"{prefix}write_file", query=WriteQuery, **common,
            summary="Write a file in the guest. It takes the place of the path's when all of it is there.",
            answers={200: Media(WrittenFile)}, body=Media(_BINARY, _OCTETS), body_required=False,
        )  # fmt: skip
        yield Route("PUT", path, f"{prefix}write_file", write, writing)


async def _read(node: Node, request: RestRequest, vm: str, peer: str | None) -> Response:
    """Answer when the file is open: what is wrong is an error, and no half of a file."""
    query = request.query_as(FileQuery)
    first, last = _range(request)
    length = None if last is None else last - first + 1
    asked = ReadFile(path=path_bytes(query.path, query.path_base64), offset=first, length=length)
    stack = AsyncExitStack()
    try:
        stream = await stack.enter_async_context(node.guest_stream(request.caller, vm, asked, peer))
        size = stream.opened.file.size if stream.opened.file else 0
        if first and first >= size:
            raise RangeNotSatisfiable(f"the file has {size} bytes", size=size)
    except BaseException:
        await stack.aclose()
        raise
    of_range = b"range" in request.fields
    response = Response(b"", 206 if of_range else 200, content_type=_OCTETS)
    response.response = _FileBody(stream, stack, partial(request.bound, node.tokens), peer is not None)
    del response.headers["Content-Length"]
    response.headers["Accept-Ranges"] = "bytes"
    response.timeout = None
    if of_range:
        end = size - 1 if last is None else min(last, size - 1)
        response.headers["Content-Range"] = f"bytes {first}-{max(end, 0)}/{size}"
    return response


class _FileBody(ResponseBody):
    """The content of a file, as it comes; the stream from the guest ends with the response.

    What comes from a peer is compared with the digest of what was sent there: here the stream itself has checked it.
    """

    def __init__(
        self,
        stream: GuestStream,
        stack: AsyncExitStack,
        bound: Callable[[], AbstractContextManager[None]],
        from_peer: bool,
    ) -> None:
        self._stream, self._stack, self._bound = stream, stack, bound
        self._seen = hashlib.blake2b(digest_size=32) if from_peer else None

    async def __aenter__(self) -> AsyncIterable[Any]:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def __aiter__(self) -> _FileBody:
        return self

    async def __anext__(self) -> bytes:
        """Raises what ends the connection: PeerMisbehaved when it is not what the guest has read; Unauthenticated."""
        while True:
            with self._bound():
                message = await self._stream.receive()
            if isinstance(message, Output):
                if self._seen is not None:
                    self._seen.update(message.data)
                return message.data
            if isinstance(message, Finished):
                if self._seen is not None and message.digest not in {None, self._seen.hexdigest()}:
                    raise PeerMisbehaved("the file came with other bytes than the guest has read")
                raise StopAsyncIteration


async def _write(node: Node, request: RestRequest, vm: str, peer: str | None) -> Response:
    query = request.query_as(WriteQuery)
    kind = request.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if request.has_body and kind != _OCTETS.encode():
        raise UnsupportedMediaType(f"a file is written as {_OCTETS}")
    asked = WriteFile(
        path=path_bytes(query.path, query.path_base64), size=query.size, mode=query.mode,
        modified=query.modified, user=query.user, upload=query.upload,
    )  # fmt: skip
    async with node.guest_stream(request.caller, vm, asked, peer) as stream:
        there = stream.opened.input_offset
        if query.offset > there:
            raise InvalidRequest(
                f"the guest has {there} bytes of this upload: go on there", path="offset", offset=there
            )
        at = query.offset
        async for part in request.upload():
            await stream.send(Input(data=part, offset=at))
            at += len(part)
        if query.size not in {None, at}:
            raise InvalidRequest(f"size: the body ends at byte {at}, and {query.size} were announced", path="size")
        await stream.send(InputEnd())
        while not isinstance(message := await stream.receive(), Finished):
            pass
    return json_response(WrittenFile(file=message.file, digest=message.digest))


def _range(request: RestRequest) -> tuple[int, int | None]:
    """The first and the last byte that are asked for. Raises: InvalidRequest for other forms."""
    header = request.fields.get(b"range", b"").decode("latin-1")
    if not header:
        return 0, None
    found = _RANGE.fullmatch(header.replace(" ", ""))
    if found is None or (found[2] and int(found[2]) < int(found[1])):
        raise InvalidRequest("Range must be bytes=FIRST-LAST or bytes=FIRST-", path="Range")
    return int(found[1]), int(found[2]) if found[2] else None
