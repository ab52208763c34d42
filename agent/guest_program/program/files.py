"""Files of the guest: read, written, listed, made and removed. A write takes the file's place when it is whole."""

import os
import stat
from errno import EEXIST, EISDIR, ENOSPC, ENOTDIR, ESTALE

from .process import User
from .stream import OUT, PIECE, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _blake2 import blake2b  # `hashlib` would load OpenSSL
except ImportError:
    from hashlib import blake2b

CHUNK = 256 * 1024
"""Bytes of a file that is hashed."""
PAGE = 192 * 1024
"""Bytes of one page of a directory, about."""
KEEP_PARTIAL = 3600.0
"""Seconds for which a part of an upload is kept for its next connection."""
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def locate(path: bytes) -> bytes:
    """A relative path is one of the user's home."""
    return os.path.join(os.fsencode(os.environ.get("HOME") or User("").home), path)


def describe(path: bytes, *, follow: bool = False) -> "dict[str, Any]":
    """Raises: OSError."""
    found = os.stat(path) if follow else os.lstat(path)
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
    entry: "dict[str, Any]" = {
        "name": os.path.basename(path.rstrip(b"/")) or b"/",
        "kind": kind,
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "modified": found.st_mtime,
    }
    if kind == "link":
        entry["target"] = os.readlink(path)
    return entry


class ReadFile(Stream):
    """The content of a file, as far as the host takes it."""

    _fd = -1

    def start(self, request: "dict[str, Any]") -> None:
        path = locate(request["path"])
        self._fd = _open_regular(path)
        self._left = request["length"]
        self._hash = blake2b(digest_size=32)
        os.lseek(self._fd, request["offset"], os.SEEK_SET)
        self._entry = describe(path, follow=True)
        self.is_open(file=self._entry)

    def has_room(self) -> None:
        while self._fd >= 0 and self.room() >= PIECE:
            size = PIECE if self._left is None else min(PIECE, self._left)
            try:
                data = os.read(self._fd, size) if size else b""
            except OSError as error:
                self.close()
                self.fail(error)
                return
            if not data:
                self.close()
                self.end(digest=self._hash.hexdigest(), file=self._entry)
                return
            self._hash.update(data)
            self.put(OUT, data)
            if self._left is not None:
                self._left -= len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class WriteFile(Stream):
    """A new content for a file. What an upload of a name had written before is taken as received."""

    _fd = -1
    _scratch = b""

    def start(self, request: "dict[str, Any]") -> None:
        self._request = request
        self._path = os.path.realpath(locate(request["path"]))
        if os.path.isdir(self._path):
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        self._before = os.stat(self._path) if os.path.exists(self._path) else None
        if self._before and not stat.S_ISREG(self._before.st_mode):
            raise FileExistsError(EEXIST, os.strerror(EEXIST))
        folder, name = os.path.split(self._path)
        self._upload = request["upload"]
        label = self._upload or "{:x}".format(self.number)
        self._scratch = os.path.join(folder, b"." + name[:180] + b"." + label.encode() + b".part")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._scratch, flags if self._upload else flags | os.O_TRUNC, 0o600)
        self._hash = blake2b(digest_size=32)
        while True:
            data = os.read(self._fd, CHUNK)
            if not data:
                break
            self._hash.update(data)
            self.received += len(data)
        self.is_open(received=self.received)

    def take(self, data: "bytes | memoryview") -> None:
        self._hash.update(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._upload = "" if error.errno == ENOSPC else self._upload
            self.close()
            self.fail(error)

    def take_end(self) -> None:
        if self._fd < 0:
            return
        try:
            self._finish()
            self.end(digest=self._hash.hexdigest(), file=describe(self._path))
        except (OSError, KeyError) as error:
            self._upload = ""
            self.close()
            self.fail(error if isinstance(error, OSError) else OSError(ESTALE, ""))

    def _finish(self) -> None:
        """Raises: OSError, KeyError."""
        size, mode, modified = (self._request[key] for key in ("size", "mode", "modified"))
        if size is not None and size != self.received:
            raise OSError(ESTALE, os.strerror(ESTALE))
        before = self._before
        if mode is None:
            mode = stat.S_IMODE(before.st_mode) if before else 0o644
        if self._request["user"]:
            user = User(self._request["user"])
            os.fchown(self._fd, user.uid, user.gid)
        elif before and os.getuid() == 0:
            os.fchown(self._fd, before.st_uid, before.st_gid)
        os.fchmod(self._fd, mode)
        if modified is not None:
            os.utime(self._fd, (modified, modified))
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        os.rename(self._scratch, self._path)
        self._scratch = b""
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._scratch and not self._upload:
            discard(self._scratch)
            self._scratch = b""
        elif self._scratch:
            self.program.partial(self._scratch, KEEP_PARTIAL)


class FileCall(Stream):
    """What is done at once: list, make, remove."""

    def start(self, request: "dict[str, Any]") -> None:
        call = {"list": self._list, "make": self._make, "remove": self._remove}[request["do"]]
        call(locate(request["path"]), request)

    def _list(self, path: bytes, request: "dict[str, Any]") -> None:
        entry = describe(path, follow=True)
        if entry["kind"] != "directory":
            self._answer(file=entry, files=[], more=False)
            return
        after, limit, size = request["after"], request["limit"], 0
        files: "list[dict[str, Any]]" = []
        names = sorted(name for name in os.listdir(path) if name > after)
        for name in names:
            if len(files) >= limit or size > PAGE:
                break
            try:
                files.append(describe(os.path.join(path, name)))
            except FileNotFoundError:
                continue  # it was removed at this moment
            size += 100 + len(name) + len(files[-1].get("target", b""))
        self._answer(file=entry, files=files, more=bool(files) and files[-1]["name"] != names[-1])

    def _make(self, path: bytes, request: "dict[str, Any]") -> None:
        mode = request["mode"]
        if request["parents"]:
            os.makedirs(path, exist_ok=True)
        elif not os.path.isdir(path):
            os.mkdir(path)
        if request["user"]:
            user = User(request["user"])
            os.chown(path, user.uid, user.gid)
        if mode is not None:
            os.chmod(path, mode)
        if request["modified"] is not None:
            os.utime(path, (request["modified"], request["modified"]))
        self._answer(file=describe(path))

    def _remove(self, path: bytes, request: "dict[str, Any]") -> None:
        entry = describe(path)
        if entry["kind"] != "directory":
            os.unlink(path)
        elif request["recursive"]:
            _remove_tree(path)
        else:
            os.rmdir(path)
        self._answer(file=entry)

    def _answer(self, **result: "Any") -> None:
        self.is_open()
        self.end(**result)


def discard(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # somebody else has removed it


def _remove_tree(path: bytes) -> None:
    """Links are removed, not followed. Raises: OSError."""
    for folder, folders, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            below = os.path.join(folder, name)
            if os.path.islink(below):
                os.unlink(below)
            else:
                os.rmdir(below)
    os.rmdir(path)


def _raise(error: OSError) -> None:
    raise error


def _open_regular(path: bytes) -> int:
    """Raises: OSError for what is no regular file: a pipe would never end, a terminal would hang."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    number = EISDIR if stat.S_ISDIR(mode) else ENOTDIR
    raise OSError(number, os.strerror(number))
