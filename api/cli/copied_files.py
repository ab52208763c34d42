"""Both ends of a copied file: whether it is there already, its name and attributes, its bytes hashed on their way."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ...protocols.errors import PeerMisbehaved
from ...protocols.guest import FileEntry, FileKind, text_or_base64
from .output import size

CHUNK = 1 << 18
SAME_TIME = 1e-5
"""Seconds: a time loses its nanoseconds on the way."""


def is_there(file: FileEntry | None, found: os.stat_result | None) -> bool:
    """Return whether an earlier copy has brought a file: its mode and its time are set when all of it is there."""
    return (
        file is not None
        and found is not None
        and stat.S_ISREG(found.st_mode)
        and (file.kind, file.size, file.mode & 0o777) == (FileKind.FILE, found.st_size, found.st_mode & 0o777)
        and abs(file.modified.timestamp() - found.st_mtime) < SAME_TIME
    )


def stat_of(path: Path) -> os.stat_result | None:
    """Return what is here, without following a link; None when nothing is."""
    try:
        return path.lstat()
    except OSError:
        return None


def named(path: bytes) -> dict[str, str]:
    """Return a path in a guest as the fields of a request."""
    text, coded = text_or_base64(path)
    return {"path": text} if coded is None else {"path_base64": coded}


def below(directory: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory of a guest."""
    return directory.rstrip(b"/") + b"/" + name


def component(name: bytes) -> str:
    """Return a name of a guest as one component of a path here. Raises: PeerMisbehaved."""
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise PeerMisbehaved(f"the guest names a file {name!r}")
    return os.fsdecode(name)


def keep_attributes(path: Path, entry: FileEntry) -> None:
    """Give a file or directory the mode and the time that it has in the guest."""
    at = entry.modified.timestamp()
    path.chmod(entry.mode & 0o777)
    os.utime(path, (at, at))


def skip(file: BinaryIO, offset: int, digest: Any) -> None:
    """Hash what is there already, up to `offset`."""
    while offset > 0 and (data := file.read(min(CHUNK, offset))):
        digest.update(data)
        offset -= len(data)


def counted(file: BinaryIO, digest: Any, sent: int, total: int | None, show: Any, what: str) -> Iterator[bytes]:
    """Yield the rest of a file, hash it and show how far it is."""
    while data := file.read(CHUNK):
        digest.update(data)
        yield data
        sent += len(data)
        show(f"{what}: {size(sent)}{f' of {size(total)}' if total is not None else ''}")


def verify(theirs: str | None, ours: Any, target: bytes) -> None:
    """Compare the guest's digest of a file with ours. Raises: PeerMisbehaved."""
    if theirs is not None and theirs != ours.hexdigest():
        raise PeerMisbehaved(f"the guest has got other bytes than were sent to {os.fsdecode(target)!r}")
