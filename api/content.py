"""What a client sends as the body of a request, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from .sparse import CHUNK, disk_parts


class Hashed:
    """Content as it is sent, with the BLAKE2b of all of it."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content, self._hash = content, hashlib.blake2b(digest_size=32)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        part = await anext(self._content)
        self._hash.update(part)
        return part


async def single_part(content: bytes) -> AsyncIterator[bytes]:
    """Yield `content` whole, and nothing if it is empty."""
    if content:
        yield content


async def file_parts(path: Path) -> AsyncIterator[bytes]:
    """Yield a file as it reads."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def packed_parts(path: Path) -> AsyncIterator[bytes]:
    """Yield a disk without its holes, as a node takes images and nothing else does."""
    with path.open("rb") as file:
        for chunk in disk_parts(file):
            yield chunk
