"""The qcow2 header: what a foreign one says, and how an empty overlay of ours is written. Bytes in, bytes out.

The layout is QEMU's `docs/interop/qcow2.txt`; all numbers are big-endian.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path

MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQIIB7x")
_DATA_FILE = 1 << 2
_EXTENDED_L2 = 1 << 4
_COMPRESSED = 1 << 62
_ZERO = 1
_WHOLE = 0xFFFFFFFF
_OFFSET = 0x00FFFFFFFFFFFE00
_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_REFCOUNT_ORDER = 4  # 16-bit counts
_BACKING_FORMAT = 0xE2792ACA


class BadQcow2Error(ValueError):
    """The bytes are not a qcow2 header that can be read."""


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """`size` is the guest's disk in bytes."""

    version: int
    size: int
    has_backing_file: bool
    has_data_file: bool
    encrypted: bool


def parse_header(data: bytes) -> Qcow2Header:
    """Read the first bytes of a qcow2 file; 112 are enough. Raises: BadQcow2Error."""
    if len(data) < _V2.size or data[:4] != MAGIC:
        raise BadQcow2Error("this is not a qcow2 file")
    _, version, backing_offset, backing_size, bits, size, crypt, *_ = _V2.unpack_from(data)
    if version not in {2, 3}:
        raise BadQcow2Error(f"qcow2 version {version} is not known")
    if not 9 <= bits <= 21:
        raise BadQcow2Error(f"a cluster of 2^{bits} bytes is not allowed")
    incompatible = 0
    if version == 3:
        if len(data) < _V2.size + _V3.size:
            raise BadQcow2Error("the header is cut short")
        incompatible = _V3.unpack_from(data, _V2.size)[0]
    return Qcow2Header(
        version=version,
        size=size,
        has_backing_file=bool(backing_offset or backing_size),
        has_data_file=bool(incompatible & _DATA_FILE),
        encrypted=crypt != 0,
    )


def table_ends(data: bytes) -> list[tuple[int, int]]:
    """Where the L1 table and the table of snapshots end at least, each with the size of a cluster; in bytes.

    `data` begins with a header that `parse_header` takes.
    """
    bits, l1_entries, l1_offset = struct.unpack_from(">I12xIQ", data, 20)
    snapshots, snapshots_offset = struct.unpack_from(">IQ", data, 60)
    cluster = 1 << bits
    ends = [(l1_offset + 8 * l1_entries, cluster)]
    return [*ends, (snapshots_offset + 40 * snapshots, cluster)] if snapshots else ends


def is_extended(head: bytes) -> bool:
    """Return whether a file whose header this is writes the 32nd parts of its clusters, of the last one as well."""
    return parse_header(head).version == 3 and bool(_V3.unpack_from(head, _V2.size)[0] & _EXTENDED_L2)


def data_end(path: Path) -> int:
    """Where what leads to the guest's data, and the data itself, ends in a checked file, in bytes. Blocking.

    QEMU writes the end of a file only as far as it is filled, which a table of reference counts may be, too.
    """
    with path.open("rb") as file:
        head = file.read(_V2.size + _V3.size)
        bits, l1_entries, l1_offset = struct.unpack_from(">I12xIQ", head, 20)
        step = 2 if is_extended(head) else 1
        end: int = l1_offset + 8 * l1_entries
        file.seek(l1_offset)
        for entry in _numbers(file.read(8 * l1_entries)):
            if table := entry & _OFFSET:
                file.seek(table)
                entries = _numbers(file.read(1 << bits))
                parts = entries[1::2] if step == 2 else repeat(_WHOLE)
                ends = map(partial(_cluster_end, bits), entries[::step], parts)
                end = max(end, table + (1 << bits), max(ends, default=0))
    return end


def _cluster_end(bits: int, entry: int, parts: int) -> int:
    """Where the data of a cluster ends, 0 where there is none.

    The lower half of `parts` has a bit for each 32nd of it that is written.
    """
    if entry & _COMPRESSED:
        shift = 62 - (bits - 8)
        sectors = ((entry >> shift) & ((1 << (bits - 8)) - 1)) + 1
        return (entry & ((1 << shift) - 1)) // 512 * 512 + sectors * 512
    written = (parts & _WHOLE).bit_length()
    return (entry & _OFFSET) + (written << bits >> 5) if entry & _OFFSET and written and not entry & _ZERO else 0


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q", data[: len(data) - len(data) % 8])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def backing_of(data: bytes) -> bytes:
    """The name of the backing file that a header in `data` gives, empty for none."""
    offset, length = struct.unpack_from(">QI", data, 8)
    return data[offset : offset + length]


def empty_disk(size: int, backing: str = "") -> list[tuple[int, bytes]]:
    """What to write where, for a disk of `size` bytes that holds nothing yet, over the raw file `backing` if any.

    The rest of the file is zeros: `empty_length` says how long it is.
    """
    name = os.fsencode(backing)
    if len(name) > 1023:
        raise ValueError("the path of a backing file is at most 1023 bytes")
    table, block, l1 = _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER
    extension = struct.pack(">II8s", _BACKING_FORMAT, 3, b"raw") if name else b""
    extension += struct.pack(">II", 0, 0)
    fixed = _V2.size + _V3.size
    head = _V2.pack(
        MAGIC, 3, fixed + len(extension) if name else 0, len(name), _CLUSTER_BITS, size, 0,
        _l1_entries(size), l1, table, 1, 0, 0,
    )  # fmt: skip
    head += _V3.pack(0, 0, 0, _REFCOUNT_ORDER, fixed, 0)
    used = 3 + _l1_clusters(size)
    return [(0, head + extension + name), (table, struct.pack(">Q", block)), (block, struct.pack(">H", 1) * used)]


def empty_length(size: int) -> int:
    """How long the file of an empty disk is: `empty_disk` and zeros."""
    return (3 + _l1_clusters(size)) * _CLUSTER


def _l1_entries(size: int) -> int:
    # One L1 entry leads to a cluster of L2 entries of 8 bytes, each of which leads to a cluster of data.
    return max(1, -(-size // (_CLUSTER * (_CLUSTER // 8))))


def _l1_clusters(size: int) -> int:
    return -(-_l1_entries(size) * 8 // _CLUSTER)
