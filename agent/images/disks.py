"""Which disks are taken in: what their first bytes say, and the sentences for those that are refused."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ...protocols.errors import ImageDamaged, InvalidRequest, WrongState
from .qcow2 import BadQcow2Error, parse_header
from .signatures import foreign_format, is_raw_disk

SECTOR = 512
MAX_SIZE = 1 << 40


class Format(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


class Packing(StrEnum):
    """How a disk's bytes were compressed on their way here."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"


def detect_packing(head: bytes) -> Packing:
    if head.startswith(b"\x1f\x8b\x08"):
        return Packing.GZIP
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return Packing.ZSTD
    if head.startswith(b"\xfd7zXZ\0"):
        return Packing.XZ
    return Packing.NONE


def detect_format(head: bytes, max_size: int, *, raw: bool = False) -> tuple[Format, int | None]:
    """The format and, where the header tells it, the size of the disk in bytes. `HEAD` bytes of `head` are enough.

    `raw` takes what is no qcow2 disk as a raw one, whatever it looks like.
    Raises: InvalidRequest for a format, a size or a feature that is not taken in, and for what is no disk.
    """
    if not head.startswith(b"QFI"):
        if not raw:
            require_raw_disk(head)
        return Format.RAW, None
    try:
        header = parse_header(head)
    except BadQcow2Error as error:
        raise damaged(str(error)) from None
    refuse_features(backing_file=header.has_backing_file, data_file=header.has_data_file, encrypted=header.encrypted)
    check_size(header.size, max_size)
    return Format.QCOW2, whole_sectors(header.size)


def require_raw_disk(head: bytes) -> None:
    """Raises: InvalidRequest, saying what it is, unless a disk that begins with `head` can be recognised as one."""
    if not head:
        raise InvalidRequest("the disk is empty")
    if what := foreign_format(head):
        raise InvalidRequest(f"this is {what}")
    if not is_raw_disk(head):
        raise InvalidRequest(
            "this cannot be recognised as a disk: it is no qcow2 file, and has no boot sector, no partition table and "
            "no known file system; where it is a raw disk all the same, say so with raw"
        )


def refuse_features(*, backing_file: bool, data_file: bool, encrypted: bool) -> None:
    """Raises: InvalidRequest for a disk that is more than its own bytes."""
    if backing_file:
        raise InvalidRequest(
            "the disk has a backing file, and only whole disks are taken in; flatten it with 'qemu-img convert' first"
        )
    if data_file:
        raise InvalidRequest("the disk keeps its data in another file; flatten it with 'qemu-img convert' first")
    if encrypted:
        raise InvalidRequest("the disk is encrypted; decrypt it with 'qemu-img convert' first")


def check_size(size: int, max_size: int) -> None:
    """Raises: InvalidRequest for a disk that holds nothing or is larger than this node takes."""
    if size <= 0:
        raise InvalidRequest("the disk is empty")
    if size > max_size:
        raise InvalidRequest(f"a disk of {size} bytes is refused: this node takes at most {max_size} (images.max_size)")


def whole_sectors(size: int) -> int:
    """A guest sees whole sectors of 512 bytes: the rest of the last one is zeros."""
    return size + -size % SECTOR


def damaged(why: str) -> InvalidRequest:
    return InvalidRequest(f"the disk is damaged: {why}")


def check_overlay_size(size: int, base_size: int) -> None:
    """Raises: InvalidRequest when an overlay would hide the end of its base, or has no whole sectors."""
    if size < base_size:
        raise InvalidRequest(
            f"a disk of {size} bytes is smaller than its image, which has {base_size} bytes", path="disk_size"
        )
    if size % SECTOR:
        raise InvalidRequest(f"a disk of {size} bytes is not a whole number of sectors", path="disk_size")


def base_missing(digest: str) -> ImageDamaged:
    return ImageDamaged(f"the disk of the image {digest} is missing or damaged; pull or import it anew, or remove it")


def foreign_overlay(path: Path) -> WrongState:
    return WrongState(f"{path.name} is there already and is not an overlay of this image with this size")
