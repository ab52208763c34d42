"""A disk that boots by UEFI alone: a GPT, an EFI system partition, and in it a program that prints `uefi ` on COM1.

Everything is made here, byte by byte: the PE image as Microsoft's "PE Format" has it, the FAT as its "FAT32 File System
Specification", the GPT as chapter 5 of the UEFI specification.
"""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

SECTOR = 512
CLUSTER = 4 * SECTOR
START = 2048  # sectors
LENGTH = 8192
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
# lea rsi, text; ecx = its length; wait until COM1 takes a byte; send it; a pause; again.
_CODE = (
    bytes.fromhex("488d3520000000b90500000066bafd03eca82074f7ac66baf803eee2efb900000002e2feebd8") + b"\x90" + b"uefi "
)


def program() -> bytes:
    """An application for UEFI on x86-64."""
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 240, 0x22)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, SECTOR, 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QIIHHHHHHIIIIHH", 0, 0x1000, SECTOR, 0, 0, 0, 0, 0, 0, 0, 0x2000, SECTOR, 0, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(128)
    section = struct.pack("<8sIIIIIIHHI", b".text", SECTOR, 0x1000, SECTOR, SECTOR, 0, 0, 0, 0, 0x60000020)
    head = b"MZ" + bytes(58) + struct.pack("<I", 64) + coff + optional + section
    return head.ljust(SECTOR, b"\0") + _CODE.ljust(SECTOR, b"\0")


def _entry(name: bytes, cluster: int, size: int = 0) -> bytes:
    return struct.pack("<11sB14xHI", name, 0x20 if size else 0x10, cluster, size)


def _fat(loader: bytes, content: bytes) -> bytes:
    """A FAT12 file system with \\EFI\\BOOT\\ and the loader, which fits into one cluster."""
    boot = b"\xeb\x3c\x90TWINTEST" + struct.pack(
        "<HBHBHHBHHHIIBBBI11s8s", SECTOR, 4, 1, 1, 512, LENGTH, 0xF8, 8, 32, 2, START, 0, 0x80, 0, 0x29, 1,
        b"ESP        ", b"FAT12   ",
    )  # fmt: skip
    boot = boot.ljust(510, b"\0") + b"\x55\xaa"
    chain = b"\xf8\xff\xff" + b"\xff\xff\xff" + b"\xff\x0f\x00"  # three files of one cluster each
    folders = [_entry(b"BOOT       ", 3), _entry(loader, 4, len(content))]
    files = [_folder(2, 0, folders[0]), _folder(3, 2, folders[1]), content]
    fat = boot + chain.ljust(8 * SECTOR, b"\0") + _entry(b"EFI        ", 2).ljust(512 * 32, b"\0")
    return (fat + b"".join(file.ljust(CLUSTER, b"\0") for file in files)).ljust(LENGTH * SECTOR, b"\0")


def _folder(own: int, parent: int, entry: bytes) -> bytes:
    return _entry(b".          ", own) + _entry(b"..         ", parent) + entry


def uefi_disk(*, loader: bytes = b"BOOTX64 EFI", bios_boot: bool = False, boot_code: bytes = b"") -> bytes:
    """A disk of 8 MiB; `bios_boot` adds the partition and `boot_code` the code by which a BIOS boots it, too."""
    sectors = 16384
    parts = [(ESP, START, START + LENGTH - 1), *([(BIOS_BOOT, 1024, 2047)] if bios_boot else [])]
    rows = [
        kind.bytes_le + bytes([number + 1]) * 16 + struct.pack("<QQQ", first, last, 0) + bytes(72)
        for number, (kind, first, last) in enumerate(parts)
    ]
    table = b"".join(rows).ljust(128 * 128, b"\0")

    def header(own: int, other: int, at: int) -> bytes:
        def pack(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, sectors - 34, bytes([9]) * 16,
                at, 128, 128, zlib.crc32(table),
            )  # fmt: skip

        return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")

    record = boot_code.ljust(446, b"\0") + struct.pack("<4xB3xII", 0xEE, 1, sectors - 1) + bytes(48) + b"\x55\xaa"
    head = (record + header(1, sectors - 1, 2) + table).ljust(START * SECTOR, b"\0")
    tail = table + header(sectors - 1, 1, sectors - 33)
    body = (head + _fat(loader, program())).ljust(sectors * SECTOR - len(tail), b"\0")
    return body + tail
