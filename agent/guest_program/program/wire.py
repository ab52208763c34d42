"""Frames on the guest channel, and how both sides find their beginning again after a cut at any byte.

A frame is [type u8][stream u32][length u32][CRC-32 u32] and that many bytes; the CRC is over the head and the bytes.
After each connect the host sends more zero bytes than a frame has, then HELLO and a nonce. Zero is no type of frame,
and a frame that the zeros end fails its CRC: so the reader hunts for HELLO, and what was on the way is gone. The answer
is HELLO_BACK and the same nonce, after which the host takes the bytes for frames. A program that starts says ANNOUNCE.
"""

import struct
from zlib import crc32

HEAD = struct.Struct(">BIII")
MAX_BODY = 65536
MESSAGE, PART, DATA, ACK = 1, 2, 3, 4
HELLO = bytes.fromhex("d1c8a5f0ee4b11ef9e2d74696e6e7731")
HELLO_BACK = bytes.fromhex("b24f9a3cee4b11ef8d0b776c6b656432")
ANNOUNCE = bytes.fromhex("73b0e61aee4b11efa5c174776e736833")
NONCE = 16
ZEROS = bytes(MAX_BODY + HEAD.size)
MAX_MESSAGE = 1 << 20


def frame(kind: int, stream: int, body: bytes) -> bytes:
    start = struct.pack(">BII", kind, stream, len(body))
    return start + struct.pack(">I", crc32(body, crc32(start))) + body


def message(stream: int, body: bytes) -> bytes:
    """The frames of a control message of any length."""
    parts = []
    while len(body) > MAX_BODY:
        parts.append(frame(PART, stream, body[:MAX_BODY]))
        body = body[MAX_BODY:]
    parts.append(frame(MESSAGE, stream, body))
    return b"".join(parts)


class Reader:
    """Cuts what arrives into frames; `nonce` is set when a HELLO was found, and the frames after it are new."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._hunting = True
        self._parts = b""
        self.nonce: "bytes | None" = None

    def reset(self) -> None:
        """The host has gone: hunt for the next HELLO."""
        self._data = bytearray()
        self._parts = b""
        self._hunting = True

    def feed(self, data: "bytes | bytearray") -> "list[tuple[int, int, bytes]]":
        """Return the frames that are whole now: type, stream, body. Control messages are put together."""
        self._data += data
        found: "list[tuple[int, int, bytes]]" = []
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
        at = self._data.find(HELLO)
        if at < 0:
            del self._data[: max(0, len(self._data) - len(HELLO) + 1)]
            return False
        if len(self._data) < at + len(HELLO) + NONCE:
            del self._data[:at]
            return False
        end = at + len(HELLO) + NONCE
        self.nonce = bytes(self._data[at + len(HELLO) : end])
        del self._data[:end]
        self._parts = b""
        self._hunting = False
        return True

    def _next(self) -> "tuple[int, int, bytes] | None":
        """The next frame; None when it is not whole, or when it is none and the hunt begins."""
        if len(self._data) < HEAD.size:
            return None
        kind, stream, length, crc = HEAD.unpack_from(self._data)
        if not (MESSAGE <= kind <= ACK and length <= MAX_BODY):
            self._hunting = True
            return None
        end = HEAD.size + length
        if len(self._data) < end:
            return None
        body = bytes(self._data[HEAD.size : end])
        if crc != crc32(body, crc32(self._data[:9])):
            self._hunting = True
            return None
        del self._data[:end]
        return kind, stream, body
