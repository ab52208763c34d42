"""Frames on the guest channel, and how both sides find their beginning again after a cut at any byte.

A frame is [type u8][stream u32][length u32][CRC-32 u32] and that many bytes; the CRC is over the head and the bytes.
After each connect the host sends more zero bytes than a frame has, then HELLO and a nonce. Zero is no type of frame,
and a frame that the zeros end fails its CRC: so the reader hunts for HELLO, and what was on the way is gone. The answer
is HELLO_BACK and the same nonce, after which the host takes the bytes for frames. A program that starts says ANNOUNCE.

A SUMMED frame has content of a file: its CRC is over the head and SUMMED_HEAD alone, which has the CRC-32 of all
content of the stream up to the end of the frame. So one pass over the bytes checks the piece and the whole.
"""

import struct
from zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEAD = struct.Struct(">BIII")
MAX_BODY = 65536
MESSAGE, PART, DATA, ACK, SUMMED = 1, 2, 3, 4, 5
SUMMED_HEAD = struct.Struct(">QBI")
HELLO = bytes.fromhex("d1c8a5f0ee4b11ef9e2d74696e6e7731")
HELLO_BACK = bytes.fromhex("b24f9a3cee4b11ef8d0b776c6b656432")
ANNOUNCE = bytes.fromhex("73b0e61aee4b11efa5c174776e736833")
NONCE = 16
ZEROS = bytes(MAX_BODY + HEAD.size)
MAX_MESSAGE = 1 << 20
CHECKED = HEAD.size - 4
"""Bytes of a head before its CRC."""
SUMMED_START = HEAD.size + SUMMED_HEAD.size
PAGE = 4096
READ_SIZE = 256 * 1024
_BASE = MAX_BODY + PAGE
"""Where the pages begin in the buffer: before them is room for the beginning of a frame."""


def frame(kind: int, stream: int, *parts: "bytes | bytearray") -> bytes:
    start = struct.pack(">BII", kind, stream, sum(map(len, parts)))
    crc = crc32(start)
    for part in parts:
        crc = crc32(part, crc)
    return b"".join((start, struct.pack(">I", crc), *parts))


def fill_summed(buffer: bytearray, stream: int, offset: int, size: int, total: int) -> None:
    """Write the heads of a SUMMED frame before its content at SUMMED_START; `total` is the CRC with it."""
    HEAD.pack_into(buffer, 0, SUMMED, stream, SUMMED_HEAD.size + size, 0)
    SUMMED_HEAD.pack_into(buffer, HEAD.size, offset, 1, total)
    view = memoryview(buffer)
    struct.pack_into(">I", buffer, CHECKED, crc32(view[HEAD.size : SUMMED_START], crc32(view[:CHECKED])))


def message(stream: int, body: bytes) -> bytes:
    """The frames of a control message of any length."""
    parts = []
    while len(body) > MAX_BODY:
        parts.append(frame(PART, stream, body[:MAX_BODY]))
        body = body[MAX_BODY:]
    parts.append(frame(MESSAGE, stream, body))
    return b"".join(parts)


class Reader:
    """Cuts what arrives into frames; `nonce` is set when a HELLO was found, and the frames after it are new.

    The bytes are read into one buffer and stay there: the body of a frame is a view of it until the next `pages`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(_BASE + READ_SIZE)
        self._view = memoryview(self._buffer)
        self._pages = [self._view[at : at + PAGE] for at in range(_BASE, _BASE + READ_SIZE, PAGE)]
        self._start = self._end = _BASE
        self._hunting = True
        self._parts = b""
        self.nonce: "bytes | None" = None

    def reset(self) -> None:
        """The host has gone: hunt for the next HELLO."""
        self._start = self._end = _BASE
        self._parts = b""
        self.hunt()

    def hunt(self) -> None:
        """What follows is no frame: look for the next HELLO."""
        self._hunting = True

    def pages(self) -> "list[memoryview]":
        """Where the next bytes go. A virtio port fills one page at a time, and the kernel goes on with the next one."""
        if self._end != _BASE:
            start = _BASE - (self._end - self._start)  # what is left lies before the pages, which stay where they are
            self._view[start:_BASE] = self._view[self._start : self._end]
            self._start, self._end = start, _BASE
        return self._pages

    def feed(self, size: int) -> "list[tuple[int, int, Any]]":
        """Return the frames that are whole with `size` bytes more: type, stream, body. Control messages are joined."""
        self._end += size
        found: "list[tuple[int, int, Any]]" = []
        while True:
            if self._hunting:
                if not self._hunt():
                    return found
                del found[:]
            one = self._next()
            if one is None:
                if not self._hunting:
                    return found
            elif one[0] == PART:
                self._parts += one[2]
                if len(self._parts) > MAX_MESSAGE:
                    self.reset()
            elif one[0] == MESSAGE:
                found.append((MESSAGE, one[1], self._parts + one[2]))
                self._parts = b""
            else:
                found.append(one)

    def _hunt(self) -> bool:
        at = self._buffer.find(HELLO, self._start, self._end)
        if at < 0:
            self._start = max(self._start, self._end - len(HELLO) + 1)
            return False
        end = at + len(HELLO) + NONCE
        self._start = at
        if self._end < end:
            return False
        self.nonce = bytes(self._view[at + len(HELLO) : end])
        self._start = end
        self._parts = b""
        self._hunting = False
        return True

    def _next(self) -> "tuple[int, int, memoryview] | None":
        """The next frame; None when it is not whole, or when it is none and the hunt begins."""
        start = self._start
        if self._end < start + HEAD.size:
            return None
        kind, stream, length, crc = HEAD.unpack_from(self._buffer, start)
        if not (MESSAGE <= kind <= SUMMED and length <= MAX_BODY):
            self._hunting = True
            return None
        end = start + HEAD.size + length
        if self._end < end:
            return None
        body = self._view[start + HEAD.size : end]
        checked = body[: SUMMED_HEAD.size] if kind == SUMMED else body
        if crc != crc32(checked, crc32(self._view[start : start + CHECKED])):
            self._hunting = True
            return None
        self._start = end
        return kind, stream, body
