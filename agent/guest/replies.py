"""What the guest has answered, as callers see it: its files, and its kernel's errors as typed ones."""

from __future__ import annotations

import errno
import os
from base64 import b64encode
from datetime import UTC, datetime

from ...protocols.errors import FileNotFound, GuestRefused, TwinshareError
from ...protocols.guest import FileEntry, FileKind
from ...protocols.guest_channel import EndReply, GuestFile

_KINDS = {str(kind) for kind in FileKind}
_EARLIEST, _LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


def file_entry(file: GuestFile) -> FileEntry:
    """A file as the REST API shows it."""
    name, encoded = _text(file.name)
    return FileEntry(
        name=name,
        kind=FileKind(file.kind) if file.kind in _KINDS else FileKind.OTHER,
        size=file.size,
        mode=file.mode,
        modified=_time(file.modified),
        name_base64=encoded,
        target=None if file.target is None else _text(file.target)[0],
    )


def refusal(end: EndReply, what: str) -> TwinshareError:
    """The error of a stream that ended with one; `what` names the file or the command."""
    number = end.errno or errno.EIO
    try:
        reason = os.strerror(number) if number != errno.EINVAL or not end.error else end.error
    except (OverflowError, ValueError):
        reason = "an unknown error"
    kind = FileNotFound if number == errno.ENOENT else GuestRefused
    return kind(f"{what}: {reason}", reason=reason)


def _text(data: bytes) -> tuple[str, str | None]:
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return data.decode(errors="replace"), b64encode(data).decode()


def _time(seconds: float) -> datetime:
    """The guest may say any time."""
    if not _EARLIEST.timestamp() < seconds < _LATEST.timestamp():
        return _EARLIEST if seconds < 0 else _LATEST
    return datetime.fromtimestamp(seconds, UTC)
