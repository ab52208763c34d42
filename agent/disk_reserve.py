"""Space on the node's disk that is kept for what makes room: the file `reserve` in the data directory.

On a full disk the journal, the image database and libvirt could not write what a deletion needs. So the node allocates
a file while there is space, gives parts of it back when it starts on a full disk or makes room there, and allocates
them again later. Until then everything that takes space is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog
import trio

from ..protocols.errors import InsufficientResources
from ..protocols.size import MIB
from .files import FULL_DISK

log = structlog.get_logger(__name__)

SIZE = 16 * MIB
STEP = 4 * MIB
"""Bytes that are given back at a time: enough for a start, or for a deletion. No fewer are free then."""
REFILL_EVERY = 2.0


class DiskReserve:
    """The reserve of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "reserve"
        self._size = 0

    @property
    def is_whole(self) -> bool:
        return self._size >= SIZE

    def free(self) -> int:
        """Return the free bytes of the disk. Raises: OSError."""
        disk = os.statvfs(self._file.parent)
        return disk.f_bavail * disk.f_frsize

    def open(self) -> None:
        """Read what is there, and give back a part where less is free than a start needs; allocate it otherwise.

        Blocking. A disk that cannot be written is left to what needs it more.
        """
        try:
            self._size = self._file.stat().st_size if self._file.exists() else 0
            self._release()
            self._allocate()
        except OSError as error:
            log.warning("the space for deletions on a full disk cannot be reserved", error=error.strerror)

    async def make_room(self) -> None:
        """Give back a part of the reserve if the disk is full."""
        try:
            if self.free() < STEP:
                await trio.to_thread.run_sync(self._release)
        except OSError as error:
            log.warning("the space reserved for deletions cannot be given back", error=error.strerror)

    async def require(self) -> None:
        """Refuse what takes space while the reserve is used. Raises: InsufficientResources."""
        if not self.is_whole and not await self._refill():
            raise InsufficientResources(
                "the disk of the node is full, and what is left is kept for deletions; delete VMs or images, or free "
                f"space in {self._file.parent}"
            )

    async def tend(self) -> None:
        """Allocate again what was given back, as soon as there is space. Never returns."""
        while True:
            await trio.sleep(REFILL_EVERY)
            if not self.is_whole:
                await self._refill()

    def problems(self) -> list[str]:
        """Return what to say in the node's health."""
        try:
            free = self.free()
        except OSError as error:
            return [f"the disk of the data directory cannot be read: {error.strerror}"]
        if self.is_whole and free >= STEP:
            return []
        return [
            f"the disk of {self._file.parent} is full ({free // 1024} KiB free): delete VMs or images, or free space"
        ]

    async def _refill(self) -> bool:
        try:
            await trio.to_thread.run_sync(self._allocate)
        except OSError as error:
            log.warning("the space for deletions on a full disk cannot be reserved", error=error.strerror)
        return self.is_whole

    def _release(self) -> None:
        if self._size and self.free() < STEP:
            self._size = max(0, self._size - STEP)
            os.truncate(self._file, self._size)
            log.warning("the disk is full: a part of the reserved space is given back", left=self._size)

    def _allocate(self) -> None:
        """Make the reserve whole if enough is left besides. Raises: OSError."""
        if self.is_whole or self.free() < SIZE - self._size + STEP:
            return
        fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)
            self._size = SIZE
        except OSError as error:
            # A part of it may be allocated, and somebody else needs it more.
            os.ftruncate(fd, self._size)
            if error.errno not in FULL_DISK:
                raise
        finally:
            os.close(fd)
