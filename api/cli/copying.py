"""Copies between this machine and a guest: resumed, verified, in place only when whole.

A guest is not trusted: a name from it is one component of a path, and no link is followed or made here.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ...protocols.errors import FileNotFound, InvalidRequest, PeerMisbehaved, TwinshareError
from ...protocols.guest import DirectoryRequest, FileEntry, FileKind, FileList, text_or_base64
from ..exchange import NodeUnreachable, file_read, file_write
from .node import NodeClient
from .output import say, size
from .progress import progress_line

PART = 8 << 20
"""Bytes that are read by one request."""
RESUMABLE = 1 << 20
"""A file of so many bytes is looked for, half sent, before it is sent."""
RETRY_WITHIN = 60.0
_CHUNK = 1 << 18


class Copy:
    """One command's copies. `left_out` counts what was no file and no directory."""

    def __init__(self, client: NodeClient, vm: str, peer: str | None, *, recursive: bool) -> None:
        self._client, self._vm, self._peer, self._recursive = client, vm, peer, recursive
        self.left_out = 0

    # To the guest

    def upload(self, source: str, target: bytes) -> None:
        """Raises: InvalidRequest, what the node raises."""
        if source == "-":
            self._send_stream(sys.stdin.buffer, target)
            return
        path = Path(source)
        try:
            found = path.stat()
        except OSError as error:
            raise InvalidRequest(f"{source} cannot be read: {error.strerror}") from None
        if target.endswith(b"/") or self._is_directory(target):
            target = _below(target, os.fsencode(path.resolve().name))
        if stat.S_ISDIR(found.st_mode):
            self._require_recursive(source)
            self._upload_directory(path, target)
        else:
            self._send_file(path, found, target)

    def _upload_directory(self, path: Path, target: bytes) -> None:
        self._make(target, None)
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            inner = _below(target, os.fsencode(entry.name))
            if entry.is_dir(follow_symlinks=False):
                self._upload_directory(Path(entry.path), inner)
            elif entry.is_file(follow_symlinks=False):
                self._send_file(Path(entry.path), entry.stat(), inner)
            else:
                self._leave_out(entry.path)
        # Last: the time of a directory changes with what is put into it.
        self._make(target, path.stat())

    def _make(self, target: bytes, found: os.stat_result | None) -> None:
        given: dict[str, Any] = (
            {} if found is None else {"mode": stat.S_IMODE(found.st_mode), "modified": found.st_mtime}
        )
        fields: dict[str, Any] = _named(target) | given
        request = DirectoryRequest(**fields)
        self._client.call("make_directory", {"vm": self._vm, "request": request}, self._peer)

    def _send_stream(self, stream: BinaryIO, target: bytes) -> None:
        digest = hashlib.blake2b(digest_size=32)
        with progress_line() as show:
            body = _counted(stream, digest, 0, None, show, os.fsdecode(target))
            written = self._client.send(file_write(self._vm, target, self._peer, {}), body)
        _verify(written.digest, digest, target)

    def _send_file(self, path: Path, found: os.stat_result, target: bytes) -> None:
        """Send one file, again from where it was when the connection is cut."""
        key = f"{self._vm} {os.fsencode(path.resolve())!r} {target!r} {found.st_size} {found.st_mtime_ns}"
        options = {
            "size": found.st_size, "mode": stat.S_IMODE(found.st_mode), "modified": found.st_mtime,
            "upload": hashlib.sha256(key.encode()).hexdigest()[:32],
        }  # fmt: skip
        give_up_at, offset = time.monotonic() + RETRY_WITHIN, 0
        if found.st_size >= RESUMABLE:
            offset = self._offset_there(target, options)
        while True:
            try:
                return self._send_from(path, found, target, options, offset)
            except NodeUnreachable as error:
                if error.reason == "protocol" or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.5)
                offset = self._offset_there(target, options)

    def _send_from(
        self, path: Path, found: os.stat_result, target: bytes, options: dict[str, Any], offset: int
    ) -> None:
        digest = hashlib.blake2b(digest_size=32)
        try:
            with path.open("rb") as file, progress_line() as show:
                _skip(file, offset, digest)
                body = _counted(file, digest, offset, found.st_size, show, str(path))
                request = file_write(self._vm, target, self._peer, options | {"offset": offset})
                written = self._client.send(request, body)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
        _verify(written.digest, digest, target)

    def _offset_there(self, target: bytes, options: dict[str, Any]) -> int:
        """Ask how much of an upload the guest has: one that goes on behind its end is refused with that number."""
        try:
            self._client.send(file_write(self._vm, target, self._peer, options | {"offset": 1 << 62}), iter(()))
        except InvalidRequest as error:
            return int(error.details.get("offset", 0))
        return 0

    # From the guest

    def download(self, source: bytes, target: Path) -> None:
        """Raises: InvalidRequest, what the node raises."""
        listed = self._list(source)
        if str(target) == "-":
            for data in self._parts(source, 0, None):
                sys.stdout.buffer.write(data)
            return
        if target.is_dir():
            target = target / _component(source.rstrip(b"/").rpartition(b"/")[2] or b"root")
        if listed.entry.kind is FileKind.DIRECTORY:
            self._require_recursive(os.fsdecode(source))
            self._download_directory(source, listed.entry, target)
        else:
            self._fetch(source, listed.entry, target)

    def _download_directory(self, source: bytes, entry: FileEntry, target: Path) -> None:
        if target.is_symlink():
            raise InvalidRequest(f"{target} is a link")
        target.mkdir(exist_ok=True)
        after: str | None = None
        while True:
            page = self._list(source, after)
            for file in page.files:
                inner, here = _below(source, file.name_bytes), target / _component(file.name_bytes)
                if file.kind is FileKind.DIRECTORY:
                    self._download_directory(inner, file, here)
                elif file.kind is FileKind.FILE:
                    self._fetch(inner, file, here)
                else:
                    self._leave_out(os.fsdecode(inner))
            if (after := page.next) is None:
                break
        _keep_attributes(target, entry)

    def _fetch(self, source: bytes, entry: FileEntry, target: Path) -> None:
        """Read one file into a file beside its place; the same file goes on where an earlier copy was cut off."""
        version = hashlib.sha256(f"{self._vm} {source!r} {entry.size} {entry.modified}".encode()).hexdigest()[:12]
        part = target.with_name(f".{target.name[:180]}.{version}.part")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(part, flags, 0o600), "ab") as file, progress_line() as show:
                done = file.tell()
                # A file of /proc says that it is empty.
                for data in self._parts(source, done, entry.size or None):
                    file.write(data)
                    done += len(data)
                    show(f"{target.name}: {size(done)} of {size(entry.size)}")
            if entry.size and done != entry.size:
                part.unlink()
                raise InvalidRequest(f"{os.fsdecode(source)!r} changed while it was read; copy it again")
            _keep_attributes(part, entry)
            part.rename(target)
        except OSError as error:
            raise InvalidRequest(f"{target} cannot be written: {error.strerror}") from None

    def _parts(self, source: bytes, offset: int, length: int | None) -> Iterator[bytes]:
        """Yield a file from `offset` on; a part whose connection was cut is asked for again."""
        while length is None or offset < length:
            try:
                data: bytes = self._client.send(file_read(self._vm, source, self._peer, offset, PART)).data
            except TwinshareError as error:
                if error.status == 416:
                    return
                raise
            if not data:
                return
            yield data
            offset += len(data)
            if length is None and len(data) < PART:
                return

    # Both

    def _list(self, path: bytes, after: str | None = None) -> FileList:
        arguments = {"vm": self._vm, **_named(path), **({"after": after} if after else {})}
        found: FileList = self._client.call("list_files", arguments, self._peer)
        return found

    def _is_directory(self, path: bytes) -> bool:
        try:
            return self._list(path).entry.kind is FileKind.DIRECTORY
        except FileNotFound:
            return False

    def _require_recursive(self, what: str) -> None:
        if not self._recursive:
            raise InvalidRequest(f"{what} is a directory; copy it with -r")

    def _leave_out(self, what: str) -> None:
        self.left_out += 1
        say(f"left out, for it is no file: {what!r}")


def _named(path: bytes) -> dict[str, str]:
    text, coded = text_or_base64(path)
    return {"path": text} if coded is None else {"path_base64": coded}


def _below(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def _component(name: bytes) -> str:
    """Return a name of a guest as one component of a path here. Raises: PeerMisbehaved."""
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise PeerMisbehaved(f"the guest names a file {name!r}")
    return os.fsdecode(name)


def _keep_attributes(path: Path, entry: FileEntry) -> None:
    at = entry.modified.timestamp()
    path.chmod(entry.mode & 0o777)
    os.utime(path, (at, at))


def _skip(file: BinaryIO, offset: int, digest: Any) -> None:
    while offset > 0 and (data := file.read(min(_CHUNK, offset))):
        digest.update(data)
        offset -= len(data)


def _counted(
    file: BinaryIO, digest: Any, sent: int, total: int | None, show: Any, what: str
) -> Iterator[bytes]:  # fmt: skip
    """Yield the rest of a file, hash it and show how far it is."""
    while data := file.read(_CHUNK):
        digest.update(data)
        yield data
        sent += len(data)
        show(f"{what}: {size(sent)}{f' of {size(total)}' if total is not None else ''}")


def _verify(theirs: str | None, ours: Any, target: bytes) -> None:
    """Raises: PeerMisbehaved."""
    if theirs is not None and theirs != ours.hexdigest():
        raise PeerMisbehaved(f"the guest has got other bytes than were sent to {os.fsdecode(target)!r}")
