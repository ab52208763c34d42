"""Copies between this machine and a guest: resumed, verified, in place only when whole.

The files of a directory go over several connections at once, without those that an earlier copy has brought.
A guest is not trusted: a name from it is one component of a path, and no link is followed or made here.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ...protocols.errors import FileNotFound, InvalidRequest, TwinshareError
from ...protocols.guest import DirectoryRequest, FileEntry, FileKind, FileList
from ..exchange import NodeUnreachable, file_read, file_write
from .connections import ConnectionPool, within_rate
from .copied_files import below, component, counted, is_there, keep_attributes, named, skip, stat_of, verify
from .node import NodeClient
from .output import say, size
from .progress import progress_line

PART = 8 << 20
"""Bytes that are read by one request."""
RESUMABLE = 1 << 20
"""A file of so many bytes is looked for, half sent, before it is sent."""
RETRY_WITHIN = 60.0


class Copy:
    """One command's copies. `left_out` counts what was no file and no directory; `connect` makes another client."""

    def __init__(
        self, client: NodeClient, vm: str, peer: str | None, *, recursive: bool, connect: Callable[[], NodeClient]
    ) -> None:  # fmt: skip
        self._client, self._vm, self._peer, self._recursive = client, vm, peer, recursive
        self._connect = connect
        self.left_out = 0

    def _over(self, client: NodeClient) -> Copy:
        """The same copy over another connection."""
        return Copy(client, self._vm, self._peer, recursive=self._recursive, connect=self._connect)

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
            target = below(target, os.fsencode(path.resolve().name))
        if stat.S_ISDIR(found.st_mode):
            self._require_recursive(source)
            with ConnectionPool(self._connect) as pool:
                directories = list(self._upload_directory(path, target, pool))
            # Last: the time of a directory changes with what is put into it.
            for directory, attributes in directories:
                self._make(directory, attributes)
        else:
            self._send_file(path, found, target)

    def _upload_directory(
        self, path: Path, target: bytes, pool: ConnectionPool
    ) -> Iterator[tuple[bytes, os.stat_result]]:  # fmt: skip
        """Yield the directories, those inside first."""
        self._make(target, None)
        there = {file.name_bytes: file for file in self._listed(target)}
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            inner = below(target, os.fsencode(entry.name))
            if entry.is_dir(follow_symlinks=False):
                yield from self._upload_directory(Path(entry.path), inner, pool)
            elif not entry.is_file(follow_symlinks=False):
                self._leave_out(entry.path)
            elif not is_there(there.get(os.fsencode(entry.name)), found := entry.stat()):
                pool.submit(partial(self._send_over, Path(entry.path), found, inner))
        yield target, path.stat()

    def _send_over(self, path: Path, found: os.stat_result, target: bytes, client: NodeClient) -> None:
        self._over(client)._send_file(path, found, target)

    def _make(self, target: bytes, found: os.stat_result | None) -> None:
        given: dict[str, Any] = (
            {} if found is None else {"mode": stat.S_IMODE(found.st_mode), "modified": found.st_mtime}
        )
        fields: dict[str, Any] = named(target) | given
        request = DirectoryRequest(**fields)
        within_rate(lambda: self._client.call("make_directory", {"vm": self._vm, "request": request}, self._peer))

    def _send_stream(self, stream: BinaryIO, target: bytes) -> None:
        digest = hashlib.blake2b(digest_size=32)
        with progress_line() as show:
            body = counted(stream, digest, 0, None, show, os.fsdecode(target))
            written = self._client.send(file_write(self._vm, target, self._peer, {}), body)
        verify(written.digest, digest, target)

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
                skip(file, offset, digest)
                body = counted(file, digest, offset, found.st_size, show, str(path))
                request = file_write(self._vm, target, self._peer, options | {"offset": offset})
                written = self._client.send(request, body)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
        verify(written.digest, digest, target)

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
            target = target / component(source.rstrip(b"/").rpartition(b"/")[2] or b"root")
        if listed.entry.kind is FileKind.DIRECTORY:
            self._require_recursive(os.fsdecode(source))
            with ConnectionPool(self._connect) as pool:
                directories = list(self._download_directory(source, listed.entry, target, pool))
            for directory, attributes in directories:
                keep_attributes(directory, attributes)
        else:
            self._fetch(source, listed.entry, target)

    def _download_directory(
        self, source: bytes, entry: FileEntry, target: Path, pool: ConnectionPool
    ) -> Iterator[tuple[Path, FileEntry]]:  # fmt: skip
        """Yield the directories, those inside first."""
        if target.is_symlink():
            raise InvalidRequest(f"{target} is a link")
        target.mkdir(exist_ok=True)
        for file in self._listed(source):
            inner, here = below(source, file.name_bytes), target / component(file.name_bytes)
            if file.kind is FileKind.DIRECTORY:
                yield from self._download_directory(inner, file, here, pool)
            elif file.kind is not FileKind.FILE:
                self._leave_out(os.fsdecode(inner))
            elif not is_there(file, stat_of(here)):
                pool.submit(partial(self._fetch_over, inner, file, here))
        yield target, entry

    def _fetch_over(self, source: bytes, entry: FileEntry, target: Path, client: NodeClient) -> None:
        self._over(client)._fetch(source, entry, target)

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
            keep_attributes(part, entry)
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
        arguments = {"vm": self._vm, **named(path), **({"after": after} if after else {})}
        found: FileList = within_rate(lambda: self._client.call("list_files", arguments, self._peer))
        return found

    def _listed(self, path: bytes) -> Iterator[FileEntry]:
        """Yield what is in a directory."""
        after: str | None = None
        while True:
            page = self._list(path, after)
            yield from page.files
            if (after := page.next) is None:
                return

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
