"""The content of files: read as the host takes it, written so that it takes the file's place when all of it is there.

A host that can asks for SUMMED frames (wire.py); for others the content has a BLAKE2b, which costs five times as much.
"""

import os
import stat
from errno import EEXIST, EISDIR, ENOSPC, ENOTDIR, ESTALE
from zlib import crc32

from .files import describe, discard, locate
from .process import User
from .stream import OUT, PIECE, Program, Stream
from .wire import SUMMED_START, fill_summed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _blake2 import blake2b  # `hashlib` would load OpenSSL
except ImportError:
    from hashlib import blake2b

CHUNK = 256 * 1024
"""Bytes of a file that is hashed."""
WINDOW = 512 * 1024
"""Bytes of a file that may be under way, each of them once."""
FRAME = 64 * 1024
"""Bytes of a SUMMED frame: a virtio port sends 32 KiB at a time."""
SHORT = 4096
KEEP_PARTIAL = 3600.0
"""Seconds for which a part of an upload is kept for its next connection."""


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
        self._opened()

    def _opened(self) -> None:
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


class SummedReadFile(ReadFile):
    """The content of a file in SUMMED frames, each of which is read into its place and kept until the host has it."""

    def __init__(self, program: Program, number: int) -> None:
        ReadFile.__init__(self, program, number)
        self._sum = self._next = 0  # the CRC-32 of what was read, the frame that is sent next
        self._frames: "list[tuple[int, bytes | memoryview]]" = []
        self._spare: "list[bytearray]" = []

    def _opened(self) -> None:
        self.is_open(file=self._entry, summed=0)

    def has_room(self) -> None:
        """Nothing is read before it can be sent."""

    def resume(self, received: int, limit: int) -> None:
        self._next = 0
        self.on_ack(received, limit)

    def on_ack(self, received: int, limit: int) -> None:
        if not self._acked <= received <= self.out_end:
            return
        self._acked, self._limit = received, limit
        while self._frames and self._frames[0][0] <= received:
            _, data = self._frames.pop(0)
            self._next = max(0, self._next - 1)
            if isinstance(data, memoryview) and isinstance(data.obj, bytearray):
                self._spare.append(data.obj)

    def next_frame(self) -> "bytes | memoryview":
        if self._next == len(self._frames) and not (self._fd >= 0 and self._read()):
            return b""
        end, data = self._frames[self._next]
        if end > self._limit:
            return b""
        self._next += 1
        return data

    def _read(self) -> bool:
        """Read the next frame if there is one, and the host would take it."""
        size = FRAME - SUMMED_START if self._left is None else min(FRAME - SUMMED_START, self._left)
        if self.out_end + size > min(self._limit, self._acked + WINDOW):
            return False
        buffer = self._spare.pop() if self._spare else bytearray(FRAME)
        view = memoryview(buffer)
        try:
            size = os.readv(self._fd, [view[SUMMED_START : SUMMED_START + size]]) if size else 0
        except OSError as error:
            self.close()
            self.fail(error)
            return False
        if not size:
            self.close()
            self.end(file=self._entry)
            return False
        self._sum = crc32(view[SUMMED_START : SUMMED_START + size], self._sum)
        fill_summed(buffer, self.number, self.out_end, size, self._sum)
        whole = view[: SUMMED_START + size]
        self.out_end += size
        if self._left is not None:
            self._left -= size
        self._frames.append((self.out_end, bytes(whole) if len(whole) <= SHORT else whole))
        return True


class WriteFile(Stream):
    """A new content for a file. What an upload of a name had written before is taken as received."""

    takes = WINDOW
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
        summed = request.get("summed")
        self._hash: "Any" = blake2b(digest_size=32)
        while True:
            data = os.read(self._fd, CHUNK)
            if not data:
                break
            self._hash.update(data)
            self.received_sum = crc32(data, self.received_sum)
            self.received += len(data)
        if not summed:
            self.is_open(received=self.received)
            return
        if not self.received:
            self._hash = None  # every byte comes in a SUMMED frame
        self.is_open(received=self.received, summed=self.received_sum)

    def take(self, data: "bytes | memoryview") -> None:
        if self._hash is not None:
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
            digest = None if self._hash is None else self._hash.hexdigest()
            self.end(digest=digest, file=describe(self._path))
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


def _open_regular(path: bytes) -> int:
    """Raises: OSError for what is no regular file: a pipe would never end, a terminal would hang."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    number = EISDIR if stat.S_ISDIR(mode) else ENOTDIR
    raise OSError(number, os.strerror(number))
