"""Lets others read an image by chunks: each is checked before it is sent, so that nobody gets what has rotted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio
from blake3 import blake3

from ...protocols.blob import LENGTH, MAX_BATCH, BlobWant
from ...protocols.errors import ImageDamaged, ImageNotFound, PeerMisbehaved
from ...protocols.tunnel import HEAD, decode, length_of
from .compression import Compression
from .index import BadIndexError, ChunkIndex
from .parallel import together
from .repository import DiskRepository

AHEAD = 1
"""How many answers wait to be sent, besides the one that is packed and the one that is sent."""
IDLE = 60.0
"""Seconds in which a peer must ask for more, or take what it asked for."""
PIECE = 6 * 65507
"""Bytes that are read or sent at once: whole frames, and a block that the heap keeps (`agent/heap.py`)."""

Chunk: TypeAlias = tuple[int, int, bytes]
"""Its offset, length and digest."""


class Reader:
    """Reads a stream in large pieces and gives exact ones: views of what was read where they lie within it."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream, self._data = stream, memoryview(b"")

    async def exactly(self, count: int) -> memoryview:
        """Raises: PeerMisbehaved when the stream ends before; what the stream raises."""
        if len(self._data) < count:
            parts, lacking = [self._data], count - len(self._data)
            while lacking > 0:
                self._data = memoryview(await self._stream.receive_some(PIECE))
                if not self._data:
                    raise PeerMisbehaved("the peer closed a stream of an image in the middle")
                parts.append(self._data[:lacking])
                self._data = self._data[lacking:]
                lacking -= len(parts[-1])
            return memoryview(b"".join(parts))
        data, self._data = self._data[:count], self._data[count:]
        return data

    async def at_end(self) -> bool:
        """Whether nothing comes any more."""
        if not self._data:
            self._data = memoryview(await self._stream.receive_some(PIECE))
        return not self._data


class SharedDisk:
    """A base that is open for reading; it may be removed meanwhile."""

    def __init__(self, fd: int, index: ChunkIndex) -> None:
        self._fd, self.index = fd, index
        self.compression = Compression()

    def pack(self, places: Sequence[int]) -> list[bytes]:
        """The chunks as they are sent, in pieces. Blocking. Raises: PeerMisbehaved for what may not be asked."""
        if any(place >= len(self.index) for place in places):
            raise PeerMisbehaved("the peer asks for chunks that the image does not have")
        chunks = [self.index.chunk(place) for place in places]
        if len(chunks) > 1 and sum(length for _, length, _ in chunks) > MAX_BATCH:
            raise PeerMisbehaved("the peer asks for too much at once")
        return [b"".join(self._frames(run)) for run in _runs(chunks)]

    def _frames(self, run: Sequence[Chunk]) -> Iterator[bytes | memoryview]:
        """Read what follows each other at once, and frame it; a chunk that cannot be read has no frame."""
        start, end = run[0][0], run[-1][0] + run[-1][1]
        try:
            data = memoryview(os.pread(self._fd, end - start, start))
        except OSError:
            data = memoryview(b"")
        for offset, length, digest in run:
            chunk = data[offset - start : offset - start + length]
            frame = self.compression.frame(chunk) if blake3(chunk).digest() == digest else []
            yield LENGTH.pack(sum(map(len, frame)))
            yield from frame


def _runs(chunks: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    """Chunks that follow each other in the disk, `PIECE` bytes at most."""
    first = 0
    for at in range(1, len(chunks)):
        offset, length, _ = chunks[at]
        if offset != sum(chunks[at - 1][:2]) or offset + length - chunks[first][0] > PIECE:
            yield chunks[first:at]
            first = at
    yield chunks[first:]


@asynccontextmanager
async def open_disk(repository: DiskRepository, digest: str) -> AsyncIterator[SharedDisk]:
    """Raises: ImageNotFound, ImageDamaged."""
    base = repository.tags.whole(digest)
    if base is None:
        raise ImageNotFound(f"there is no whole image {digest} on this node")
    fd = -1

    def work() -> ChunkIndex:
        nonlocal fd
        index = ChunkIndex.read(repository.index_path(digest))
        if index.digest != digest:
            raise BadIndexError("it is another one's")
        _ = index.data_size  # made here, and not in the loop's thread
        fd = os.open(repository.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        return index

    try:
        index = await trio.to_thread.run_sync(work)
    except (OSError, BadIndexError):
        raise ImageDamaged(f"{digest} cannot be read there; `twinshare image fsck` tells why") from None
    try:
        yield SharedDisk(fd, index)
    finally:
        os.close(fd)


async def serve_chunks(stream: trio.abc.Stream, disk: SharedDisk) -> None:
    """Answer questions until the stream ends, each answer packed while the one before is sent.

    Raises: PeerMisbehaved, trio.TooSlowError, what the stream raises.
    """
    reader = Reader(stream)
    packed, to_send = trio.open_memory_channel[list[bytes]](AHEAD)

    async def pack() -> None:
        async with packed:
            while True:
                with trio.fail_after(IDLE):
                    if await reader.at_end():
                        return
                    question = await reader.exactly(length_of(await reader.exactly(HEAD.size)))
                    want = decode(bytes(question), BlobWant)
                await packed.send(await trio.to_thread.run_sync(disk.pack, want.chunks))

    async def send() -> None:
        async for answer in to_send:
            begun = trio.current_time()
            with trio.fail_after(IDLE):
                for piece in answer:
                    await stream.send_all(piece)
            disk.compression.sent(sum(map(len, answer)), trio.current_time() - begun)

    await together(pack, send)
