"""The chunk index of a disk: which data lies where. Its hash is the identity of the image.

`twinidx1`, u64 disk size, u64 number of chunks; then for each chunk u64 offset, u32 length, 32 bytes of BLAKE3; all
little-endian. What no chunk covers is zero. One disk content has exactly one index.

A disk of 1 TiB has an index of some 750 MB: a large one stays in a file, and is read from there as it is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from blake3 import blake3

from .chunker import BLOCK, MAX_CHUNK, chunks, cut
from .spooled_file import Bytes, SpooledFile, open_bytes, part_of

MAGIC = b"twinidx1"
HEADER = struct.Struct("<8sQQ")
ENTRY = struct.Struct("<QI32s")
_STEP = ENTRY.size * 16384

# Each as (offset, length, BLAKE3).
Chunks = Iterable[tuple[int, int, bytes]]


class BadIndexError(ValueError):
    """The bytes are not an index; the seam that read them says what that means there."""


class ChunkIndex:
    """`size` is the disk's in bytes, `table` the packed entries in order of offset. Reading a large one blocks."""

    def __init__(self, size: int, table: Bytes) -> None:
        self.size, self.table = size, table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkIndex) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Each chunk as (offset, length, BLAKE3)."""
        for start in range(0, len(self.table), _STEP):
            yield from ENTRY.iter_unpack(self.table[start : start + _STEP])

    def __len__(self) -> int:
        return len(self.table) // ENTRY.size

    def chunk(self, place: int) -> tuple[int, int, bytes]:
        """The chunk that stands at `place` in the index."""
        start = place * ENTRY.size
        offset, length, digest = ENTRY.unpack(self.table[start : start + ENTRY.size])
        return offset, length, digest

    @cached_property
    def digest(self) -> str:
        """`blake3:…`: two disks have one digest exactly when they hold the same bytes."""
        hashed = blake3()
        for part in self.parts():
            hashed.update(part)
        return f"blake3:{hashed.hexdigest()}"

    @cached_property
    def data_size(self) -> int:
        """How many bytes the chunks hold together."""
        return sum(length for _, length, _ in self)

    @property
    def encoded_size(self) -> int:
        """How many bytes `parts` are together."""
        return HEADER.size + len(self.table)

    def parts(self) -> Iterator[bytes]:
        """The index as it is written to a file or a stream, in pieces."""
        yield HEADER.pack(MAGIC, self.size, len(self))
        for start in range(0, len(self.table), _STEP):
            yield self.table[start : start + _STEP]

    def encode(self) -> bytes:
        return b"".join(self.parts())

    @classmethod
    def of(cls, size: int, chunks: Chunks, folder: Path | None = None) -> ChunkIndex:
        """The index of a disk of `size` bytes with these chunks, in order; `folder` is as of `SpooledFile`."""
        table = SpooledFile(folder)
        for chunk in chunks:
            table.write(ENTRY.pack(*chunk))
        return cls(size, table.finish())

    @classmethod
    def read(cls, path: Path) -> ChunkIndex:
        """The index in a file, which is not to change. Raises: BadIndexError, OSError."""
        return cls.decode(open_bytes(path))

    @classmethod
    def decode(cls, data: Bytes) -> ChunkIndex:
        """Raises: BadIndexError for anything that `index_chunks` would not write."""
        size, count = read_header(data[: HEADER.size])
        if len(data) != HEADER.size + count * ENTRY.size:
            raise BadIndexError("the index is not as long as it says")
        index = cls(size, part_of(data, HEADER.size, len(data)))
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


def read_header(data: bytes | memoryview) -> tuple[int, int]:
    """The disk's size in bytes and the number of chunks, of the first bytes of an index. Raises: BadIndexError."""
    if len(data) < HEADER.size:
        raise BadIndexError("the index is cut short")
    magic, size, count = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadIndexError("this is not a chunk index")
    return size, count


def index_chunks(size: int, found: Iterable[tuple[int, memoryview]], folder: Path | None = None) -> ChunkIndex:
    """The index of a disk of `size` bytes with these chunks, given as (offset, data) in order."""
    return ChunkIndex.of(size, (hashed(offset, data) for offset, data in found), folder)


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
