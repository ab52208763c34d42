"""Durable files: the atomic write, synced directories, scratch files. Blocking; for a worker thread.

A file that `atomic_write` replaces is either the old one or the new one, whenever the machine stops; with `durable`
the new one is on the disk when the call returns. Without it, a crash of the machine may still lose the new file, never
mix both: for files that are made anew at each start.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..protocols.errors import InsufficientResources, Unavailable

Own = Callable[[int], None]
"""Gives an open file to the user that is to read it."""

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN_DISK = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV}
DISK_CURE = "look at the disk of the node and the kernel's messages about it (dmesg)"


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o600, own: Own | None = None, durable: bool = True) -> Iterator[int]:
    """Yield the descriptor of an empty file that takes the place of `path` when the block ends without an error.

    The temporary name is `.NAME.new` in the same directory: the next write removes what a crash left. One writer at a
    time. The mode does not depend on the umask. Raises: OSError; then `path` is as it was and nothing else is left.
    """
    scratch = path.with_name(f".{path.name}.new")
    discard(scratch)
    # O_EXCL and O_NOFOLLOW: others may write in the directory, and must not lead us elsewhere by a link.
    fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
        if own is not None:
            own(fd)
        os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)
        scratch.replace(path)
    except BaseException:
        discard(scratch)
        raise
    finally:
        os.close(fd)
    if durable:
        sync_directory(path.parent)


def atomic_write(
    path: Path, content: bytes, *, mode: int = 0o600, own: Own | None = None, durable: bool = True
) -> None:
    """Replace the file `path` by one with `content`. Raises: OSError, as `atomic_file`."""
    with atomic_file(path, mode=mode, own=own, durable=durable) as fd:
        write_all(fd, memoryview(content), 0)


def durable_rename(scratch: Path, path: Path) -> None:
    """Give a file that was written and synced elsewhere on the same file system its name. Raises: OSError."""
    scratch.replace(path)
    sync_directory(path.parent)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`: one call may take less. Raises: OSError."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Remove a file if it is there. Raises: OSError."""
    with suppress(FileNotFoundError):
        path.unlink()


@contextmanager
def disk_errors_named(what: str) -> Iterator[None]:
    """Rename the kernel's errors for a disk that is full or cannot be written.

    Raises: InsufficientResources, Unavailable, and OSError for what is no fault of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise InsufficientResources(
                f"the disk of the node is full: no room for {what}; free some and try again"
            ) from None
        if error.errno in BROKEN_DISK:
            raise Unavailable(f"cannot write {what}: {error.strerror}; {DISK_CURE}") from None
        raise
