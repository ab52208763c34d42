"""What a raw disk needs to boot: BIOS or UEFI, and the architecture of its boot loader. Blocking."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .chunker import extents
from .partitions import BIOS_BOOT, ESP, Part, parts_of

BOOT_CODE = 440
"""The bytes of the first sector in which a BIOS finds code."""
MAX_ESP = 256 << 20
"""So much of an EFI system partition is searched for its boot loader."""
WINDOW = 1 << 20
# The names that UEFI gives the default boot loader, as a FAT directory writes them.
_LOADERS = {b"BOOTX64 EFI": "x86_64", b"BOOTAA64EFI": "aarch64"}
_NAME = 11


@dataclass(frozen=True, slots=True)
class BootNeeds:
    """`firmware` is `bios` or `uefi`; `architecture` is Linux's name for it, empty where the disk does not tell."""

    firmware: str = "bios"
    architecture: str = ""


def read_boot_needs(path: Path) -> BootNeeds:
    """A disk with an EFI system partition needs UEFI unless a BIOS finds code on it, too. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        parts = parts_of(fd, size)
        loaders = [part for part in parts if part.kind == ESP]
        if not loaders:
            return BootNeeds()
        architecture = _architecture(fd, loaders[0], size)
        for_bios = any(part.kind == BIOS_BOOT for part in parts) or any(os.pread(fd, BOOT_CODE, 0))
        return BootNeeds("bios" if for_bios else "uefi", architecture)
    finally:
        os.close(fd)


def _architecture(fd: int, part: Part, size: int) -> str:
    """Whose boot loader the partition holds; empty for none, or for several."""
    found = set()
    end = min(part.offset + min(part.length, MAX_ESP), size)
    for begin, stop in extents(fd, end, part.offset):
        for place in range(begin, stop, WINDOW):
            window = os.pread(fd, min(WINDOW, stop - place) + _NAME - 1, place)
            found |= {architecture for name, architecture in _LOADERS.items() if name in window}
    return found.pop() if len(found) == 1 else ""
