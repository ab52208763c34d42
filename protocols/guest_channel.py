"""The guest channel, the host's side: frames, control messages, and how both sides find their beginning again.

The other side is agent/guest_program/program, whose wire.py has the format. The guest may be hostile: everything that
comes from it is bounded here, and a frame that is none ends the connection. Bytes in and out.
"""

from __future__ import annotations

import struct
from typing import Annotated, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Meta

HEAD = struct.Struct(">BIII")
_CHECKED = struct.Struct(">BII")
_CRC = struct.Struct(">I")
DATA_HEAD = struct.Struct(">QB")
ACK_BODY = struct.Struct(">QQ")
MAX_BODY = 64 << 10
MESSAGE, PART, DATA, ACK, SUMMED = 1, 2, 3, 4, 5
SUMMED_HEAD = struct.Struct(">QBI")
"""What a SUMMED frame carries before its content: offset, channel, and the CRC-32 of all content of the stream up to
the end of this frame. Only the heads are under the frame's own CRC: one pass over content checks piece and whole."""
END, OUT, ERR = 0, 1, 2
"""What a DATA frame carries: the end of one direction, stdout or content, stderr."""
HELLO = bytes.fromhex("d1c8a5f0ee4b11ef9e2d74696e6e7731")
HELLO_BACK = bytes.fromhex("b24f9a3cee4b11ef8d0b776c6b656432")
ANNOUNCE = bytes.fromhex("73b0e61aee4b11efa5c174776e736833")
NONCE = 16
ZEROS = bytes(MAX_BODY + HEAD.size)
MAX_MESSAGE = 256 << 10
"""Bytes of one control message of the guest."""
MAX_REQUEST = 1 << 20
"""Bytes of one control message of the host, which the program takes."""
WINDOW = 256 << 10
"""Bytes of one stream's output that may be under way."""
PIECE = 60 << 10
"""Bytes of content in one frame of ours."""
CONTENT_WINDOW = 512 << 10
"""The same of a file's content."""
MAX_STREAMS = 1024


class GuestMisbehaved(Exception):
    """What came through the channel is not of our program, or not of one in its right mind."""


class ProgramRestarted(GuestMisbehaved):
    """A program begins on this connection with zeros, as each does."""


class Frame(NamedTuple):
    """One frame, or a control message that was put together."""

    kind: int
    stream: int
    body: bytes


def frame(kind: int, stream: int, body: bytes) -> bytes:
    start = _CHECKED.pack(kind, stream, len(body))
    return start + _CRC.pack(crc32(body, crc32(start))) + body


def summed_frame(stream: int, offset: int, content: bytes, total: int) -> bytes:
    """A frame of a file's content; `total` is the CRC-32 of all content with this."""
    start = _CHECKED.pack(SUMMED, stream, SUMMED_HEAD.size + len(content))
    head = SUMMED_HEAD.pack(offset, OUT, total)
    return b"".join((start, _CRC.pack(crc32(head, crc32(start))), head, content))


def message(stream: int, fields: dict[str, object]) -> bytes:
    """A control message. Raises: ValueError when it is larger than the program takes."""
    body = msgspec.msgpack.encode(fields)
    if len(body) > MAX_REQUEST:
        raise ValueError(f"a message of {len(body)} bytes is more than a guest takes")
    parts = [frame(PART, stream, body[start : start + MAX_BODY]) for start in range(0, len(body) - MAX_BODY, MAX_BODY)]
    return b"".join([*parts, frame(MESSAGE, stream, body[len(parts) * MAX_BODY :])])


def hello(nonce: bytes) -> bytes:
    """What begins a connection. It ends whatever frame the guest's side is in the middle of."""
    return ZEROS + HELLO + nonce


class Hunter:
    """Looks for the answer to one HELLO in what a connection begins with."""

    def __init__(self, nonce: bytes) -> None:
        self._mark = HELLO_BACK + nonce
        self._tail = b""
        self.announced = False
        """Whether a program has started meanwhile, which does not know the HELLO."""

    def feed(self, data: bytes) -> bytes | None:
        """The bytes after the answer, None while it has not come."""
        data = self._tail + data
        at = data.find(self._mark)
        if at >= 0:
            return data[at + len(self._mark) :]
        self.announced = self.announced or ANNOUNCE in data
        self._tail = data[-len(self._mark) :]
        return None


class FrameReader:
    """Cuts what follows the answer into frames; after it has raised once it is of no more use."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. Raises: GuestMisbehaved."""
        self._data += data
        found: list[Frame] = []
        try:
            self._cut(found)
        finally:
            del self._data[: self._at]
            self._at = 0
        return found

    def _cut(self, found: list[Frame]) -> None:
        """Raises: GuestMisbehaved."""
        while (one := self._next()) is not None:
            if one.kind == PART and len(one.body) != MAX_BODY:
                raise GuestMisbehaved("a part of a control message is not full")
            if one.kind == PART or (one.kind == MESSAGE and self._parts):
                self._parts.append(one.body)
                if sum(map(len, self._parts)) > MAX_MESSAGE:
                    raise GuestMisbehaved("a control message is too large")
                if one.kind == PART:
                    continue
                one = Frame(MESSAGE, one.stream, b"".join(self._parts))
                self._parts = []
            found.append(one)

    def _next(self) -> Frame | None:
        start = self._at
        if len(self._data) < start + HEAD.size:
            return None
        kind, stream, length, crc = HEAD.unpack_from(self._data, start)
        if kind == 0:
            raise ProgramRestarted("the program in the guest was started again")
        if not (MESSAGE <= kind <= SUMMED and length <= MAX_BODY):
            raise GuestMisbehaved("what was received is no frame")
        end = start + HEAD.size + length
        if len(self._data) < end:
            return None
        with memoryview(self._data) as view:
            body = bytes(view[start + HEAD.size : end])
            checked = body[: SUMMED_HEAD.size] if kind == SUMMED else body
            if crc != crc32(checked, crc32(view[start : start + _CHECKED.size])):
                raise GuestMisbehaved("a frame is damaged")
        self._at = end
        return Frame(kind, stream, body)


Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Number = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Words = Annotated[str, Meta(max_length=512)]


class ResumedReply(msgspec.Struct, frozen=True, tag_field="op", tag="resumed"):
    """The program's streams, each with the input that it has and the last control that it carried out."""

    version: Count
    instance: Annotated[bytes, Meta(min_length=16, max_length=16)]
    streams: Annotated[list[tuple[Number, Count, Count]], Meta(max_length=MAX_STREAMS)]


class GuestFile(msgspec.Struct, frozen=True):
    """A file as the guest describes it; `modified` in seconds since 1970."""

    name: Annotated[bytes, Meta(max_length=4096)]
    kind: Annotated[str, Meta(max_length=16)]
    size: Count
    mode: Annotated[int, Meta(ge=0, le=0o7777)]
    modified: Annotated[float, Meta(ge=-(1 << 40), le=1 << 40)]
    target: Annotated[bytes, Meta(max_length=4096)] | None = None


class OpenedReply(msgspec.Struct, frozen=True, tag_field="op", tag="opened"):
    """The stream is open; `received`: input that it has already, `summed`: its CRC-32 where SUMMED frames are taken."""

    received: Count = 0
    summed: Number | None = None
    file: GuestFile | None = None


class EndReply(msgspec.Struct, frozen=True, tag_field="op", tag="end"):
    """The stream ended after `offset` bytes of output: with `errno`, or as its kind has it."""

    offset: Count
    errno: Count | None = None
    error: Words = ""
    code: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=255)] | None = None
    digest: Annotated[str, Meta(max_length=64)] | None = None
    file: GuestFile | None = None
    files: Annotated[list[GuestFile], Meta(max_length=2048)] | None = None
    more: bool = False


class DoneReply(msgspec.Struct, frozen=True, tag_field="op", tag="done"):
    """The controls up to the number `n` are carried out."""

    n: Count


class ReportMessage(msgspec.Struct, frozen=True, tag_field="op", tag="report"):
    """What the guest says about itself."""

    hostname: Words
    listening: Annotated[list[tuple[Annotated[int, Meta(ge=1, le=65535)], Words]], Meta(max_length=256)]
    addresses: Annotated[list[Words], Meta(max_length=256)]
    host_keys: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=16)]
    ssh: bool


Reply = ResumedReply | OpenedReply | EndReply | DoneReply | ReportMessage
_DECODER = msgspec.msgpack.Decoder(Reply)


def read_reply(body: bytes) -> Reply:
    """Raises: GuestMisbehaved."""
    try:
        reply: Reply = _DECODER.decode(body)
        return reply
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise GuestMisbehaved(f"a control message is not understood: {error}") from None
