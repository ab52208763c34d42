"""Packs: a disk as concatenated zstd frames, and the index layer that says in which frame each chunk lies.

The index layer, compressed as a whole: the chunk index, then `twinpck1`, then for each chunk u16 pack, u32 offset,
u32 length, little-endian. Holes of the disk are frames too, which no chunk points at: all frames together are the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3

from ...files import write_all
from ..chunker import MAX_CHUNK
from ..index import ENTRY, HEADER, BadIndexError, ChunkIndex, read_header
from ..spooled_file import Bytes, SpooledFile, part_of

PACK_SIZE = 64 << 20
LEVEL = 3
MAGIC = b"twinpck1"
MAX_INDEX = 2 << 30
"""Bytes of an index with the places of its frames: those of a disk with 1 TiB of data are about half as many."""
MAX_FRAME = MAX_CHUNK + 4096
_RANGE = struct.Struct("<HII")
_STEP = _RANGE.size * 65536
_FRAME_HEADER = 32
_MAX_WINDOW = 8 << 20
# A zstd block of four bytes can stand for 128 KiB: little is unpacked at a time.
_COMPRESSED_STEP = 512
_ZERO_RUN = 16 << 20


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Where the frame of a chunk is: `length` bytes at `offset` of the pack of this number."""

    pack: int
    offset: int
    length: int


@dataclass(frozen=True)
class Layout:
    """A disk's chunks, and the frame of each in the packs, in the same order: `table` holds them packed."""

    index: ChunkIndex
    table: Bytes

    @classmethod
    def of(cls, index: ChunkIndex, ranges: Iterable[FrameRange]) -> Layout:
        return cls(index, b"".join(map(packed_range, ranges)))

    def ranges(self) -> Iterator[FrameRange]:
        """Where the frame of each chunk is. Blocking."""
        for start in range(0, len(self.table), _STEP):
            yield from itertools.starmap(FrameRange, _RANGE.iter_unpack(self.table[start : start + _STEP]))

    def encoded(self) -> Iterator[bytes]:
        """The index layer in pieces. Blocking."""
        size = self.index.encoded_size + len(MAGIC) + len(self.table)
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compressobj(size=size)
        for part in self._parts():
            yield compressor.compress(part)
        yield compressor.flush()

    def _parts(self) -> Iterator[bytes]:
        yield from self.index.parts()
        yield MAGIC
        for start in range(0, len(self.table), _STEP):
            yield self.table[start : start + _STEP]


def packed_range(frame: FrameRange) -> bytes:
    """A frame's place as an index layer has it."""
    return _RANGE.pack(frame.pack, frame.offset, frame.length)


def decode_layout(data: Bytes, pack_sizes: Sequence[int], max_size: int, folder: Path | None = None) -> Layout:
    """Read an index layer; `max_size` bounds the disk, `folder` is as of `SpooledFile`. Blocking.

    Raises: BadIndexError for one that lies or is too large, OSError.
    """
    plain, count = _plain(data, max_size, folder)
    split = HEADER.size + count * ENTRY.size
    if plain[split : split + len(MAGIC)] != MAGIC:
        raise BadIndexError("the index layer does not say where the chunks lie")
    index = ChunkIndex.decode(part_of(plain, 0, split))
    layout = Layout(index, part_of(plain, split + len(MAGIC), len(plain)))
    for frame in layout.ranges():
        if frame.pack >= len(pack_sizes) or frame.offset + frame.length > pack_sizes[frame.pack]:
            raise BadIndexError("a chunk lies outside its pack")
        if not 0 < frame.length <= MAX_FRAME:
            raise BadIndexError("a chunk's frame has an impossible length")
    return layout


def _plain(data: Bytes, max_size: int, folder: Path | None) -> tuple[Bytes, int]:
    """The layer uncompressed, and how many chunks it has. What is too large is refused by its first bytes."""
    plain, done = SpooledFile(folder), 0
    try:
        size = zstandard.frame_content_size(data[:_FRAME_HEADER])
        if not 0 < size <= MAX_INDEX:
            raise BadIndexError("the index layer is too large or does not say how large it is")
        parts = _decompressed(data)
        head = next(parts, b"")
        disk_size, count = read_header(head)
        if disk_size > max_size:
            raise BadIndexError(f"the disk of {disk_size} bytes is larger than the {max_size} that this node takes")
        if size != HEADER.size + len(MAGIC) + count * (ENTRY.size + _RANGE.size):
            raise BadIndexError("the index layer has not one frame for each chunk")
        for part in itertools.chain([head], parts):
            done += len(part)
            if done > size:
                break
            plain.write(part)
    except zstandard.ZstdError as error:
        raise BadIndexError(f"the index layer cannot be unpacked: {error}") from None
    if done != size:
        raise BadIndexError("the index layer is not as long as it says")
    return plain.finish(), count


def _decompressed(data: Bytes) -> Iterator[bytes]:
    stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    for start in range(0, len(data), _COMPRESSED_STEP):
        if part := stream.decompress(data[start : start + _COMPRESSED_STEP]):
            yield part
        if stream.eof:
            return


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

    `new_file` gives an empty file for a pack; `folder` as of `SpooledFile`. A chunk that comes twice is written twice.
    """

    def __init__(
        self,
        fd: int,
        index: ChunkIndex,
        new_file: Callable[[], int],
        pack_size: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._fd = fd
        self._index = index
        self._new_file = new_file
        self._pack_size = pack_size or PACK_SIZE
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self._zero_run = b""
        self._ranges = SpooledFile(folder)

    def layout(self) -> Layout:
        """Complete when all packs were taken. Raises: OSError."""
        return Layout(self._index, self._ranges.finish())

    def packs(self) -> Iterator[Pack]:
        """Each pack when it is full, and the last one. Raises: OSError, BadIndexError for a disk that has changed."""
        number = 0
        file = PackFile(self._new_file())
        for frame, is_chunk in self._frames():
            if file.size and file.size + len(frame) > self._pack_size:
                yield file.finish()
                number += 1
                file = PackFile(self._new_file())
            if is_chunk:
                self._ranges.write(packed_range(FrameRange(number, file.size, len(frame))))
            file.write(frame)
        yield file.finish()

    def _frames(self) -> Iterator[tuple[bytes, bool]]:
        """Every frame in the order of the disk, and whether it is a chunk's; those of holes are not."""
        position = 0
        for offset, length, digest in self._index:
            yield from self._hole(offset - position)
            data = os.pread(self._fd, length, offset)
            if blake3(data).digest() != digest:
                raise BadIndexError(f"the disk is not what its index says at byte {offset}")
            yield self._compressor.compress(data), True
            position = offset + length
        yield from self._hole(self._index.size - position)

    def _hole(self, length: int) -> Iterator[tuple[bytes, bool]]:
        while length >= _ZERO_RUN:
            self._zero_run = self._zero_run or self._compressor.compress(bytes(_ZERO_RUN))
            yield self._zero_run, False
            length -= _ZERO_RUN
        if length:
            yield self._compressor.compress(bytes(length)), False


class PackFile:
    """A pack or an index layer being written: its frames gathered into larger writes."""

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
