"""The chunk index of a disk: which data lies where. Its hash is the identity of the image.

`twinidx1`, u64 disk size, u64 number of chunks; then for each chunk u64 offset, u32 length, 32 bytes of BLAKE3; all
little-endian. What no chunk covers is zero. One disk content has exactly one index.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from blake3 import blake3

from .chunker import BLOCK, MAX_CHUNK, chunks, cut

MAGIC = b"twinidx1"
_HEADER = struct.Struct("<8sQQ")
_ENTRY = struct.Struct("<QI32s")

# Each as (offset, length, BLAKE3).
Chunks = Iterable[tuple[int, int, bytes]]


class BadIndexError(ValueError):
    """The bytes are not an index; the seam that read them says what that means there."""


@dataclass(frozen=True)
class ChunkIndex:
    """`size` is the disk's in bytes, `table` the packed entries in order of offset."""

    size: int
    table: bytes

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Each chunk as (offset, length, BLAKE3)."""
        return _ENTRY.iter_unpack(self.table)

    def __len__(self) -> int:
        return len(self.table) // _ENTRY.size

    def chunk(self, place: int) -> tuple[int, int, bytes]:
        """The chunk that stands at `place` in the index."""
        offset, length, digest = _ENTRY.unpack_from(self.table, place * _ENTRY.size)
        return offset, length, digest

    @cached_property
    def digest(self) -> str:
        """`blake3:…`: two disks have one digest exactly when they hold the same bytes."""
        return f"blake3:{blake3(self.encode()).hexdigest()}"

    @cached_property
    def data_size(self) -> int:
        """How many bytes the chunks hold together."""
        return sum(length for _, length, _ in self)

    def encode(self) -> bytes:
        return _HEADER.pack(MAGIC, self.size, len(self)) + self.table

    @classmethod
    def of(cls, size: int, chunks: Chunks) -> ChunkIndex:
        """The index of a disk of `size` bytes with these chunks, in order."""
        return cls(size, b"".join(_ENTRY.pack(*chunk) for chunk in chunks))

    @classmethod
    def decode(cls, data: bytes) -> ChunkIndex:
        """Raises: BadIndexError for anything that `index_chunks` would not write."""
        if len(data) < _HEADER.size:
            raise BadIndexError("the index is cut short")
        magic, size, count = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise BadIndexError("this is not a chunk index")
        if len(data) != _HEADER.size + count * _ENTRY.size:
            raise BadIndexError("the index is not as long as it says")
        index = cls(size, bytes(data[_HEADER.size :]))
        index._check()
        return index

    def _check(self) -> None:
        end = 0
        for offset, length, _ in self:
            if offset < end or offset % BLOCK:
                raise BadIndexError(f"the chunk at {offset} overlaps, is out of order or does not start on a block")
            end = offset + length
            if not 0 < length <= MAX_CHUNK or end > self.size or (end % BLOCK and end != self.size):
                raise BadIndexError(f"the chunk at {offset} has an impossible length of {length}")


def index_chunks(size: int, found: Iterable[tuple[int, memoryview]]) -> ChunkIndex:
    """The index of a disk of `size` bytes with these chunks, given as (offset, data) in order."""
    return ChunkIndex.of(size, (hashed(offset, data) for offset, data in found))


def hashed(offset: int, data: memoryview) -> tuple[int, int, bytes]:
    """A chunk as an index tells of it."""
    return offset, len(data), blake3(data).digest()


def index_file(fd: int, size: int) -> ChunkIndex:
    """Read every byte of a raw disk and index it. Blocking; for a worker thread. Raises: OSError, EOFError."""
    return index_chunks(size, chunks(fd, size))


def index_bytes(data: bytes) -> ChunkIndex:
    """Index a disk that is in memory."""
    view = memoryview(data)
    spans, _ = cut(view, last=True)
    return index_chunks(len(data), ((start, view[start:stop]) for start, stop in spans))
