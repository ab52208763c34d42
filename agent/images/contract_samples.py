"""Disks and small helpers for the contract checks of images, and for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from ...protocols.errors import (
    TwinshareError,
)
from ...protocols.operation import Progress
from . import qcow2

MIB = 1 << 20


def raw_disk(seed: int, size: int = MIB) -> bytes:
    """A disk of `size` bytes: a boot sector, some data that depends on `seed`, holes, an end within a block."""
    pattern = bytes((seed * 31 + place * 7 + place // 251) % 256 for place in range(4096))
    return with_boot_sector(pattern * 20 + bytes(65536) + pattern * 5).ljust(size, b"\0")


def with_boot_sector(disk: bytes) -> bytes:
    """Sign the first sector of a disk, so that it can be recognised as one."""
    return disk[:510] + b"\x55\xaa" + disk[512:]


def qcow2_disk(size: int, backing: str = "", *, crypt: int = 0, incompatible: int = 0) -> bytes:
    """An empty qcow2 disk, with the odd features that are to be refused."""
    disk = bytearray(qcow2.empty_length(min(size, 1 << 40)))
    for offset, data in qcow2.empty_disk(min(size, 1 << 40), backing):
        disk[offset : offset + len(data)] = data
    disk[24:32] = size.to_bytes(8, "big")
    disk[32:36] = crypt.to_bytes(4, "big")
    disk[72:80] = incompatible.to_bytes(8, "big")
    return bytes(disk)


async def pieces(content: bytes, step: int = 50_000) -> AsyncIterator[bytes]:
    """`content` as it comes over a wire."""
    for start in range(0, len(content), step):
        yield content[start : start + step]


def nobody(_digest: str) -> list[str]:
    return []


def quiet(_progress: Progress) -> None:
    return


async def refused(kind: type[TwinshareError], attempt: Awaitable[object]) -> str:
    """Return the message of the error of `kind` that `attempt` raises. Raises: AssertionError when it raises none."""
    try:
        result = await attempt
    except kind as error:
        return error.message
    raise AssertionError(f"{kind.__name__} was expected, not {result!r}")
