"""Lays out a disk that a BIOS boots: our boot sector, a Linux kernel and its first file system. Bytes in, bytes out.

Sector 0 is the boot sector, sector 1 the command line; the kernel's real-mode part, the kernel and the files follow.
All of these are the first partition; the second has what the running guest reads by itself.
The boot sector's source is `boot_sector.s` beside this module.
"""

from __future__ import annotations

import struct

SECTOR = 512
_MIB = 1 << 20
_PARAMETERS = 400
_PARTITIONS = 446
_SIGNATURE = 510
_COMMAND_LINE_ADDRESS = 0x8000
_HEAP_END = 0xE000 - 0x200
_MAX_SETUP = 64

BOOT_SECTOR = bytes.fromhex(
    "ea057c0000fa31c08ed88ec08ed0bc007cfbfc8816487d66b801000000b90100bb0008e8870066a1907d8b0e947dbb00"
    "10e8790066a1967d668b0e9a7d66bf00001000e88100b801e8cd150f82c800660fb7fa6681c7000100006681ff003000"
    "00760666bf0030000066c1e7106681ef00001000662b3ea67d6681e700f0ffffb800108ee06466893e180266a19e7d66"
    "8b0ea27de83000fab800108ed88ec08ee08ee88ed0bc00e0ea0000201066a3547d890e4e7d891e527dbe4c7d8a16487d"
    "b442cd137251c366ba400000006639d173036689ca666089d1bb0020e8ceff666166606689f8a3767d66c1e810a2787d"
    "88267b7d89d1c1e108be5c7db487cd15721566616601d06629d166c1e2096601d76685c975b1c3be287dac84c07406ba"
    "f803eeebf5f4ebfd74696e793a20746865206469736b2063616e6e6f7420626520726561640d0a00008d740010000000"
    "00000000000000000000000000000000000000000000000000000000ffff000002930000ffff00000093"
)


class NotAKernelError(ValueError):
    """The file is not a Linux kernel that a boot loader can start."""


def boot_disk(kernel: bytes, files: bytes, command_line: str, second: bytes = b"") -> bytes:
    """Return a raw disk. `kernel` is a bzImage, `files` an initramfs, `second` a partition's content.

    Raises: NotAKernelError.
    """
    setup, payload = _prepare(kernel, len(files))
    line = command_line.encode() + b"\0"
    if len(line) > SECTOR:
        raise ValueError("the command line is longer than a sector")
    parts = [_sectors(part) for part in (line, setup, payload, files)]
    starts = [1]
    for part in parts:
        starts.append(starts[-1] + len(part) // SECTOR)
    parameters = struct.pack(
        "<IHIIIII",
        starts[1], len(parts[1]) // SECTOR,
        starts[2], len(parts[2]) // SECTOR,
        starts[3], len(parts[3]) // SECTOR, len(files),
    )  # fmt: skip
    disk = bytearray(b"".join([bytes(SECTOR), *parts]))
    disk += bytes(-len(disk) % _MIB)
    partitions = _partition(1, len(disk) // SECTOR - 1, boots=True)
    if second:
        partitions += _partition(len(disk) // SECTOR, len(_sectors(second)) // SECTOR)
        disk += second
        disk += bytes(-len(disk) % _MIB)
    disk[: len(BOOT_SECTOR)] = BOOT_SECTOR
    disk[_PARAMETERS : _PARAMETERS + len(parameters)] = parameters
    disk[_PARTITIONS : _PARTITIONS + len(partitions)] = partitions
    disk[_SIGNATURE:SECTOR] = b"\x55\xaa"
    return bytes(disk)


def _prepare(kernel: bytes, files_size: int) -> tuple[bytes, bytes]:
    """The real-mode part, with what a boot loader writes into its header, and the rest of a kernel."""
    if len(kernel) < 1024 or kernel[0x202:0x206] != b"HdrS":
        raise NotAKernelError("the kernel's file has no boot header")
    (version,) = struct.unpack_from("<H", kernel, 0x206)
    length = (kernel[0x1F1] or 4) + 1
    if version < 0x0204 or length > _MAX_SETUP or not kernel[0x211] & 1:
        raise NotAKernelError("the kernel's boot protocol is too old")
    setup = bytearray(kernel[: length * SECTOR])
    setup[0x210] = 0xFF  # a boot loader without a number
    setup[0x211] |= 0x80  # heap_end_ptr is valid
    struct.pack_into("<I", setup, 0x21C, files_size)
    struct.pack_into("<H", setup, 0x224, _HEAP_END)
    struct.pack_into("<I", setup, 0x228, _COMMAND_LINE_ADDRESS)
    return bytes(setup), kernel[length * SECTOR :]


def _sectors(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def _partition(start: int, sectors: int, *, boots: bool = False) -> bytes:
    """One entry of the type for data without a file system."""
    end = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", 0x80 if boots else 0, end, 0xDA, end, start, sectors)
