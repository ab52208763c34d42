"""Packs: a disk as concatenated zstd frames, and the index layer that says in which frame each chunk lies.

The index layer, compressed as a whole: the chunk index, then `twinpck1`, then for each chunk u16 pack, u32 offset,
u32 length, little-endian. Holes of the disk are frames too, which no chunk points at: all frames together are the disk.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import zstandard
from blake3 import blake3

from ...files import write_all
from ..chunker import MAX_CHUNK
from ..index import BadIndexError, ChunkIndex

PACK_SIZE = 64 << 20
LEVEL = 3
MAGIC = b"twinpck1"
MAX_INDEX = 128 << 20
MAX_FRAME = MAX_CHUNK + 4096
_RANGE = struct.Struct("<HII")
_ZERO_RUN = 16 << 20


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Where the frame of a chunk is: `length` bytes at `offset` of the pack of this number."""

    pack: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A disk's chunks, and the frame of each in the packs, in the same order."""

    index: ChunkIndex
    ranges: Sequence[FrameRange]

    def encode(self) -> bytes:
        ranges = b"".join(_RANGE.pack(frame.pack, frame.offset, frame.length) for frame in self.ranges)
        plain = self.index.encode() + MAGIC + ranges
        return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(plain)


def decode_layout(data: bytes, pack_sizes: Sequence[int], max_size: int) -> Layout:
    """Read an index layer; `max_size` bounds the disk. Raises: BadIndexError for one that lies or is too large."""
    plain = _plain(data)
    split = plain.rfind(MAGIC)
    if split < 0:
        raise BadIndexError("the index layer does not say where the chunks lie")
    index = ChunkIndex.decode(plain[:split])
    table = plain[split + len(MAGIC) :]
    if len(table) != len(index) * _RANGE.size:
        raise BadIndexError("the index layer has not one frame for each chunk")
    if index.size > max_size:
        raise BadIndexError(f"the disk of {index.size} bytes is larger than the {max_size} that this node takes")
    ranges = [FrameRange(*fields) for fields in _RANGE.iter_unpack(table)]
    for frame in ranges:
        if frame.pack >= len(pack_sizes) or frame.offset + frame.length > pack_sizes[frame.pack]:
            raise BadIndexError("a chunk lies outside its pack")
        if not 0 < frame.length <= MAX_FRAME:
            raise BadIndexError("a chunk's frame has an impossible length")
    return Layout(index, ranges)


def _plain(data: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= MAX_INDEX:
            raise BadIndexError("the index layer is too large or does not say how large it is")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise BadIndexError(f"the index layer cannot be unpacked: {error}") from None


def unpack_chunk(decompressor: zstandard.ZstdDecompressor, frame: bytes | memoryview, length: int) -> bytes:
    """The chunk of `length` bytes in a frame, not compared with its digest yet. Raises: BadIndexError."""
    try:
        if zstandard.frame_content_size(frame) != length:
            raise BadIndexError("a frame does not hold as much as the index says")
        chunk = decompressor.decompress(frame, max_output_size=length)
    except zstandard.ZstdError as error:
        raise BadIndexError(f"a frame cannot be unpacked: {error}") from None
    if len(chunk) != length:
        raise BadIndexError("a frame is cut short")
    return chunk


@dataclass(frozen=True, slots=True)
class Pack:
    """One pack in the file `fd`. `digest` is the registry's `sha256:…`."""

    fd: int
    digest: str
    size: int


class Packer:
    """Writes a disk as packs, one file after another, and remembers where each chunk went. Blocking.

    `new_file` gives an empty file for a pack. A chunk that comes twice is written twice, and the layout has the first.
    """

    def __init__(self, fd: int, index: ChunkIndex, new_file: Callable[[], int], pack_size: int = 0) -> None:
        self._fd = fd
        self._index = index
        self._new_file = new_file
        self._pack_size = pack_size or PACK_SIZE
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self._zero_run = b""
        self._ranges: list[FrameRange] = []
        self._number = 0

    @property
    def layout(self) -> Layout:
        """Complete when all packs were taken."""
        return Layout(self._index, self._ranges)

    def packs(self) -> Iterator[Pack]:
        """Each pack when it is full, and the last one. Raises: OSError, BadIndexError for a disk that has changed."""
        seen: dict[bytes, FrameRange] = {}
        file = _PackFile(self._new_file())
        for frame, digest in self._frames():
            if file.size and file.size + len(frame) > self._pack_size:
                yield file.finish()
                self._number += 1
                file = _PackFile(self._new_file())
            if digest is not None:
                self._ranges.append(seen.setdefault(digest, FrameRange(self._number, file.size, len(frame))))
            file.write(frame)
        yield file.finish()

    def _frames(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Every frame in the order of the disk, with the digest of the chunk in it; holes have none."""
        position = 0
        for offset, length, digest in self._index:
            yield from self._hole(offset - position)
            data = os.pread(self._fd, length, offset)
            if blake3(data).digest() != digest:
                raise BadIndexError(f"the disk is not what its index says at byte {offset}")
            yield self._compressor.compress(data), digest
            position = offset + length
        yield from self._hole(self._index.size - position)

    def _hole(self, length: int) -> Iterator[tuple[bytes, None]]:
        while length >= _ZERO_RUN:
            self._zero_run = self._zero_run or self._compressor.compress(bytes(_ZERO_RUN))
            yield self._zero_run, None
            length -= _ZERO_RUN
        if length:
            yield self._compressor.compress(bytes(length)), None


class _PackFile:
    """A pack being written: its frames gathered into larger writes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._written = 0
        self._hash = hashlib.sha256()

    @property
    def size(self) -> int:
        return self._written + len(self._buffer)

    def write(self, frame: bytes) -> None:
        self._buffer += frame
        if len(self._buffer) >= 1 << 20:
            self._flush()

    def finish(self) -> Pack:
        self._flush()
        return Pack(self._fd, f"sha256:{self._hash.hexdigest()}", self._written)

    def _flush(self) -> None:
        self._hash.update(self._buffer)
        write_all(self._fd, memoryview(bytes(self._buffer)), self._written)
        self._written += len(self._buffer)
        self._buffer.clear()
