"""The content of a guest's files as tools: over REST these are streams, and so no operations of the table."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from ...protocols.access import Role
from ...protocols.errors import InvalidRequest
from ...protocols.guest import Base64, FileEntry, GuestPath, Offset, text_or_base64
from ...protocols.routes import rest
from ...protocols.vm import VmRef
from ..rest_client import RESTClient

MAX_CONTENT = 48 << 10
Length = Annotated[int, Meta(ge=1, le=MAX_CONTENT)]


class FileText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a file, in base64 where it is not UTF-8. `next_offset` is where it goes on."""

    text: str = ""
    base64: str | None = None
    next_offset: int = 0


class FileTools(Protocol):
    """Not a service of a node: the table's marks describe the tools."""

    @rest("GET", "/vm/<vm>/file", Role.OPERATOR)
    async def read_file(self, vm: VmRef, path: GuestPath, offset: Offset = 0, length: Length = 32768) -> FileText:
        """Read a file in the guest, or `length` bytes of it from `offset` on."""
        ...

    @rest("PUT", "/vm/<vm>/file", Role.OPERATOR, journalled=False)
    async def write_file(
        self,
        vm: VmRef,
        path: GuestPath,
        text: str = "",
        base64: Base64 | None = None,
        mode: Annotated[int, Meta(ge=0, le=0o7777)] | None = None,
    ) -> FileEntry:
        """Write a file in the guest: `text`, or `base64` for what is not text. It replaces the file that is there."""
        ...


async def call_file_tool(client: RESTClient, name: str, arguments: Mapping[str, Any], peer: str | None) -> Any:
    """Read or write. Raises: what the node raises; InvalidRequest."""
    vm, path = arguments["vm"], arguments["path"]
    if name == "write_file":
        return await client.write_file(vm, path, _content(arguments), peer, mode=arguments["mode"])
    offset = arguments["offset"]
    data = await client.read_file(vm, path, peer, offset=offset, length=arguments["length"])
    text, coded = text_or_base64(data)
    return FileText(text=text, base64=coded, next_offset=offset + len(data))


def _content(arguments: Mapping[str, Any]) -> bytes:
    if arguments["base64"] is None:
        return str(arguments["text"]).encode()
    if arguments["text"]:
        raise InvalidRequest("text and base64 are one or the other", path="base64")
    try:
        return b64decode(arguments["base64"], validate=True)
    except ValueError:
        raise InvalidRequest("base64 is not base64", path="base64") from None
