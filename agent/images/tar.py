"""Tar archives from outside, read forward within bounds: members, names, extended headers, bytes in all.

`tarfile` reads extended headers and the maps of sparse files whole into memory, whatever size they state, and keeps
every member: a compressed archive of some megabytes can ask for gigabytes. Here such members are refused before that.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO

MAX_MEMBERS = 10_000
MAX_EXTENDED_HEADER = 64 << 10
"""Bytes of one long name or of one set of pax records."""

MAX_READS_AT_END = 8
"""`tarfile` skips what a member announces in reads of 10 KiB, also behind the end: of 1 TiB for two minutes."""

_EXTENDED = frozenset(
    {
        tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
    }
)  # fmt: skip


class TarRefused(ValueError):
    """The archive is none, or is not within the bounds; the message is a sentence about it."""


class _Member(tarfile.TarInfo):
    """Checks each header before `tarfile` goes on with what it announces; the hook is for subclasses."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and not 0 <= self.size <= MAX_EXTENDED_HEADER:
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE or self.size < 0:
            raise tarfile.ReadError("a sparse file, or one of a negative size")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]  # typeshed leaves the hook out

    def _refuse_sparse(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")

    # How `tarfile` reads the three forms of GNU sparse files in pax records, whose maps have no bound.
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class _Archive(tarfile.TarFile):
    """Keeps a bounded number of members."""

    tarinfo = _Member
    _read = 0

    def next(self) -> tarfile.TarInfo | None:
        self._read += 1
        if self._read > MAX_MEMBERS:
            raise tarfile.ReadError(f"it has more than {MAX_MEMBERS} members")
        return super().next()


@contextmanager
def open_tar(parts: Iterator[bytes], *, max_size: int) -> Generator[tarfile.TarFile, None, None]:
    """Open the archive that `parts` are, to be iterated over once. Blocking.

    Raises: TarRefused, also from the block, and for more than `max_size` bytes in all.
    """
    try:
        with _Archive.open(fileobj=_Stream(parts, max_size), mode="r|") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OverflowError, ValueError, RecursionError) as error:
        raise TarRefused(str(error)[:200] or "it ends too early") from None


def file_in_folder(archive: tarfile.TarFile, folder: str) -> IO[bytes] | None:
    """Return the first plain file that lies right in the folder, by its name in the archive; None without one."""
    for member in archive:
        path = PurePosixPath(member.name.removeprefix("./").removeprefix("/"))
        if member.isreg() and path.parent == PurePosixPath(folder) and not path.name.startswith("."):
            return archive.extractfile(member)
    return None


class _Stream(io.RawIOBase):
    """A file over an iterator of bytes, for `tarfile`, which reads only forward."""

    def __init__(self, parts: Iterator[bytes], max_size: int) -> None:
        self._parts, self._left, self._more = parts, b"", max_size
        self._reads_at_end = 0

    def read(self, size: int = -1) -> bytes:
        found = bytearray(self._left)
        while size < 0 or len(found) < size:
            part = next(self._parts, None)
            if part is None:
                break
            self._more -= len(part)
            if self._more < 0:
                raise tarfile.ReadError("it is larger than this node takes")
            found += part
        if not found:
            self._reads_at_end += 1
            if self._reads_at_end > MAX_READS_AT_END:
                raise tarfile.ReadError("it ends too early")
        count = len(found) if size < 0 else size
        self._left = bytes(found[count:])
        return bytes(found[:count])
