"""Where the partitions of a raw disk are, and what lies in one: MBR and GPT, on disks that nobody vouches for.

Blocking; for a worker thread. Offsets and lengths in bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

SECTOR = 512
MAX_PARTITIONS = 128

ESP = "esp"
BIOS_BOOT = "bios-boot"

_EXTENDED = {0x05, 0x0F, 0x85}
_MBR_KINDS = {0xEF: ESP}
_GPT_KINDS = {
    UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le: ESP,
    UUID("21686148-6449-6e6f-744e-656564454649").bytes_le: BIOS_BOOT,
}
_PROTECTIVE = 0xEE
_EXT_MAGIC = b"\x53\xef"
_OTHERS = {
    (0, b"XFSB"): "xfs",
    (0x10040, b"_BHRfS_M"): "btrfs",
    (0x218, b"LVM2 001"): "lvm",
    (0, b"LUKS\xba\xbe"): "luks",
    (3, b"NTFS    "): "ntfs",
    (0x36, b"FAT"): "fat",
    (0x52, b"FAT32"): "fat",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a disk that may hold a file system: a partition, or the whole disk where it has none.

    `kind` is what the partition table says it is for, where that is known here.
    """

    offset: int
    length: int
    system: str
    kind: str = ""


def parts_of(fd: int, size: int) -> list[Part]:
    """The partitions, or the whole disk when there is no table; `system` is `ext`, another's name, or empty."""
    spans = [span for span in _partitions(fd, size) if span[1] > 0 and span[0] + span[1] <= size]
    return [Part(offset, length, _system(fd, offset), kind) for offset, length, kind in spans or [(0, size, "")]]


def partition_ends(fd: int, size: int) -> Iterator[int]:
    """Where each partition ends. A sector that only looks like a table is none: its entries' flags are not 0 or 128."""
    head = os.pread(fd, SECTOR, 0)
    if len(head) == SECTOR and not any(head[place] & 0x7F for place in range(446, 510, 16)):
        yield from (offset + length for offset, length, _ in _partitions(fd, size))
        # An extended partition ends where it says, whatever is left of those inside it.
        yield from ((start + count) * SECTOR for kind, start, count in _entries(head) if kind in _EXTENDED)


def _partitions(fd: int, size: int) -> Iterator[tuple[int, int, str]]:
    """Each as (offset, length, kind)."""
    head = os.pread(fd, SECTOR, 0)
    if len(head) < SECTOR or head[510:] != b"\x55\xaa":
        return
    entries = list(_entries(head))
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        yield from _gpt(fd, size)
        return
    for kind, start, count in entries:
        if kind in _EXTENDED:
            yield from _logical(fd, start)
        else:
            yield start * SECTOR, count * SECTOR, _MBR_KINDS.get(kind, "")


def _entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """The four entries of a boot record as (type, first sector, sectors), the empty ones left out."""
    for place in range(446, 510, 16):
        kind, start, count = sector[place + 4], *struct.unpack_from("<II", sector, place + 8)
        if kind and count:
            yield kind, start, count


def _logical(fd: int, extended: int) -> Iterator[tuple[int, int, str]]:
    """The partitions inside an extended one: a chain of boot records, which may be a loop."""
    record = extended
    for _ in range(MAX_PARTITIONS):
        sector = os.pread(fd, SECTOR, record * SECTOR)
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            return
        following = None
        for kind, start, count in _entries(sector):
            if kind in _EXTENDED:
                following = extended + start
            else:
                yield (record + start) * SECTOR, count * SECTOR, _MBR_KINDS.get(kind, "")
        if following is None:
            return
        record = following


def _gpt(fd: int, size: int) -> Iterator[tuple[int, int, str]]:
    header = os.pread(fd, SECTOR, SECTOR)
    if len(header) < SECTOR or not header.startswith(b"EFI PART"):
        return
    (first,) = struct.unpack_from("<Q", header, 72)
    count, width = struct.unpack_from("<II", header, 80)
    if not SECTOR // 4 <= width <= 4096 or first * SECTOR >= size:
        return
    for number in range(min(count, MAX_PARTITIONS)):
        entry = os.pread(fd, 128, first * SECTOR + number * width)
        if len(entry) == 128 and any(entry[:16]):
            start, last = struct.unpack_from("<QQ", entry, 32)
            yield start * SECTOR, (last - start + 1) * SECTOR, _GPT_KINDS.get(entry[:16], "")


def _system(fd: int, offset: int) -> str:
    if os.pread(fd, 2, offset + 1024 + 56) == _EXT_MAGIC:
        return "ext"
    for (place, magic), name in _OTHERS.items():
        if os.pread(fd, len(magic), offset + place) == magic:
            return name
    return ""
