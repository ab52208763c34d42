"""Writes the disk of a VM: an empty qcow2 overlay on a raw base, whole or not at all. Blocking; for a worker thread.

Written here and not by qemu-img: it takes a few milliseconds less, and no other program touches the VM's folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..files import Own, atomic_file, write_all
from . import qcow2
from .disks import foreign_overlay


def write_overlay(path: Path, backing: str, size: int, *, own: Own, durable: bool = True) -> None:
    """`own` hands the open file to the user that runs QEMU. An overlay that is there already is left alone.

    Raises: WrongState when something else is at `path`; OSError.
    """
    pieces = qcow2.empty_disk(size, backing)
    if path.is_symlink() or path.exists():
        if not _same(path, pieces[0][1]):
            raise foreign_overlay(path)
        return
    with atomic_file(path, own=own, durable=durable) as fd:
        for offset, data in pieces:
            write_all(fd, memoryview(data), offset)
        os.ftruncate(fd, qcow2.empty_length(size))


def is_overlay(path: Path, backing: str, size: int) -> bool:
    """Whether the file is an overlay of `size` bytes on `backing` and on nothing else."""
    return _same(path, qcow2.empty_disk(size, backing)[0][1])


def _same(path: Path, header: bytes) -> bool:
    """QEMU may write its own feature bits into the header: only the size and the backing file are compared."""
    if path.is_symlink() or not path.is_file():
        return False
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.pread(fd, 4096, 0)
    finally:
        os.close(fd)
    try:
        there = qcow2.parse_header(found)
    except qcow2.BadQcow2Error:
        return False
    if there.has_data_file or there.encrypted:
        return False
    return there.size == qcow2.parse_header(header).size and qcow2.backing_of(found) == qcow2.backing_of(header)
