"""Lets others read an image by chunks: each is checked before it is sent, so that nobody gets what has rotted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

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
STEP = 1 << 20


class Reader:
    """Reads a stream in large pieces and gives exact ones."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream, self._data = stream, bytearray()

    async def exactly(self, count: int) -> bytes:
        """Raises: PeerMisbehaved when the stream ends before; what the stream raises."""
        while len(self._data) < count:
            part = await self._stream.receive_some(STEP)
            if not part:
                raise PeerMisbehaved("the peer closed a stream of an image in the middle")
            self._data += part
        with memoryview(self._data) as view:
            data = bytes(view[:count])
        del self._data[:count]
        return data

    async def at_end(self) -> bool:
        """Whether nothing comes any more."""
        if not self._data:
            self._data += await self._stream.receive_some(STEP)
        return not self._data


class SharedDisk:
    """A base that is open for reading; it may be removed meanwhile."""

    def __init__(self, fd: int, index: ChunkIndex) -> None:
        self._fd, self.index = fd, index
        self.compression = Compression()

    def pack(self, places: Sequence[int]) -> bytes:
        """The chunks as they are sent. Blocking. Raises: PeerMisbehaved for what may not be asked."""
        if any(place >= len(self.index) for place in places):
            raise PeerMisbehaved("the peer asks for chunks that the image does not have")
        chunks = [self.index.chunk(place) for place in places]
        if len(chunks) > 1 and sum(length for _, length, _ in chunks) > MAX_BATCH:
            raise PeerMisbehaved("the peer asks for too much at once")
        return b"".join(self._frame(*chunk) for chunk in chunks)

    def _frame(self, offset: int, length: int, digest: bytes) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError:
            return LENGTH.pack(0)
        if blake3(data).digest() != digest:
            return LENGTH.pack(0)
        frame = self.compression.frame(data)
        return LENGTH.pack(len(frame)) + frame


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
    packed, to_send = trio.open_memory_channel[bytes](AHEAD)

    async def pack() -> None:
        async with packed:
            while True:
                with trio.fail_after(IDLE):
                    if await reader.at_end():
                        return
                    want = decode(await reader.exactly(length_of(await reader.exactly(HEAD.size))), BlobWant)
                await packed.send(await trio.to_thread.run_sync(disk.pack, want.chunks))

    async def send() -> None:
        async for answer in to_send:
            begun = trio.current_time()
            with trio.fail_after(IDLE):
                await stream.send_all(answer)
            disk.compression.sent(len(answer), trio.current_time() - begun)

    await together(pack, send)
