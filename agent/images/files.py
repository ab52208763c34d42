"""What makes a file last: synced folders, and scratch files that go away. Blocking; for a worker thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...protocols.errors import InsufficientResources

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sync_directory(path: Path) -> None:
    """After it, a crash does not lose the names in the folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Remove a file if it is there."""
    with suppress(FileNotFoundError):
        path.unlink()


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; the scratch file's name begins with a dot."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        discard(scratch)
        raise
    sync_directory(path.parent)


@contextmanager
def full_disk_named(what: str) -> Iterator[None]:
    """Rename the kernel's word for a full disk. Raises: InsufficientResources."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientResources(
                f"the disk of the node is full: no room for {what}; free some and try again"
            ) from None
        raise
