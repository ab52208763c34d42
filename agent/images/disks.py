"""Which disks are taken in: what their first bytes say, and the sentences for those that are refused."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ...protocols.errors import ImageDamaged, InvalidRequest, WrongState
from .qcow2 import BadQcow2Error, parse_header

SECTOR = 512
MAX_SIZE = 1 << 40

_FOREIGN = {
    b"KDMV": "a VMDK",
    b"# Disk DescriptorFile": "a VMDK",
    b"conectix": "a VHD",
    b"vhdxfile": "a VHDX",
    b"<<< ": "a VDI",
    b"QED\0": "a QED",
    b"LUKS\xba\xbe": "a LUKS",
    b"WithoutFreeSpace": "a Parallels",
    b"WithouFreSpacExt": "a Parallels",
    b"PK\x03\x04": "a ZIP",
    b"BZh": "a bzip2",
    b"7z\xbc\xaf\x27\x1c": "a 7z",
    b"Rar!": "a RAR",
    b"\x1f\x8b": "a twice compressed",
    b"\x28\xb5\x2f\xfd": "a twice compressed",
    b"\xfd7zXZ": "a twice compressed",
    b"\x7fELF": "an ELF",
    b"%PDF": "a PDF",
    b"!<arch>": "a package or archive",
    b"0707": "a cpio",
    b"\x89PNG": "a PNG",
}
_HTML = (b"<!doctype html", b"<html")
_TEXT = frozenset(b"\t\n\r\f\x1b") | frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100))
_ISO = 0x8001
_EL_TORITO = 0x8800
HEAD = 0x9000
"""How many bytes of a disk tell what it is."""


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


def detect_format(head: bytes, max_size: int) -> tuple[Format, int | None]:
    """The format and, where the header tells it, the size of the disk in bytes. `HEAD` bytes of `head` are enough.

    Raises: InvalidRequest for a format, a size or a feature that is not taken in.
    """
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InvalidRequest(
                f"this is {what} file, not a raw or qcow2 disk; convert it with 'qemu-img convert' first"
            )
    if not head.startswith(b"QFI"):
        if what := _not_a_disk(head):
            raise InvalidRequest(f"this is {what}, not a raw or qcow2 disk")
        return Format.RAW, None
    try:
        header = parse_header(head)
    except BadQcow2Error as error:
        raise damaged(str(error)) from None
    refuse_features(backing_file=header.has_backing_file, data_file=header.has_data_file, encrypted=header.encrypted)
    check_size(header.size, max_size)
    return Format.QCOW2, whole_sectors(header.size)


def _not_a_disk(head: bytes) -> str:
    """What bytes without a disk's magic are, where that is known; a boot sector is never taken for something else."""
    if head[510:512] == b"\x55\xaa":
        return ""
    if head[257:262] == b"ustar":
        return "a tar archive (an OVA is one; unpack it and import the disk in it)"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "a VDI file; convert it with 'qemu-img convert' first"
    if head[_ISO : _ISO + 5] == b"CD001":
        return "" if head[_EL_TORITO : _EL_TORITO + 6] == b"\0CD001" else "an ISO image that does not boot"
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_HTML):
        return "a web page"
    if start.startswith(b"<?xml"):
        return "an XML document"
    printable = sum(byte < 0x80 for byte in head[:512])
    return "a text" if b"\n" in head[:512] and _TEXT.issuperset(head[:512]) and printable * 2 > len(head[:512]) else ""


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
