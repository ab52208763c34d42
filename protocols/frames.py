"""Frames of the peer protocol: `[kind, id, method, body]` in msgpack, one after the other.

A frame's body stays opaque bytes here; whoever knows its type decodes it. Nothing but flat arrays of four passes,
so that no input can make the reader build deep or wide values.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import msgpack
import msgspec

from .errors import PeerMisbehaved, TooLarge

MAX_FRAME = 1 << 20
"""Bytes of a whole frame."""
MAX_CONTROL_BODY = 64 << 10
"""Bytes of the body of a frame that is not a call, a result or an item."""
READ_SIZE = 64 << 10
"""Bytes to hand to `FrameReader.feed` at once, at most."""
BUFFER_SIZE = 16 << 10
"""Bytes that a reader holds for as long as its session lasts."""
MAX_METHOD = 64
_HEAD_ROOM = 256


class Kind(IntEnum):
    """What a frame says. `ITEM` is one of a stream's values; `CREDIT` allows more of them."""

    HELLO = 0
    GOODBYE = 1
    PING = 2
    PONG = 3
    CALL = 4
    RESULT = 5
    ERROR = 6
    DETACHED = 7
    ITEM = 8
    CREDIT = 9
    CANCEL = 10


_BULKY = frozenset({Kind.CALL, Kind.RESULT, Kind.DETACHED, Kind.ITEM})
_KINDS = {int(kind): kind for kind in Kind}
_TYPES = (int, int, str, bytes)


class Frame(NamedTuple):
    """One frame. `id` is the call it belongs to, 0 for the session itself; `method` is empty for most kinds."""

    kind: Kind
    id: int
    method: str = ""
    body: bytes = b""


def encode(frame: Frame) -> bytes:
    """Raises: TooLarge when the frame would break the limits that the reader keeps."""
    room = MAX_FRAME - _HEAD_ROOM if frame.kind in _BULKY else MAX_CONTROL_BODY
    if len(frame.body) > room:
        raise TooLarge(f"a body of {len(frame.body)} bytes does not fit a frame; {room} are allowed", limit=room)
    return msgspec.msgpack.encode(frame)


class FrameReader:
    """Cuts a byte stream into frames; after it has raised once it is of no more use.

    Its buffer begins with `BUFFER_SIZE` bytes, and is given back once a frame that is larger has been taken out of it.
    """

    def __init__(self) -> None:
        self._unpacker = _make_unpacker()
        self._fed = self._taken = 0
        self._is_large = False

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        """The frames that `data` completes; take them all before the next feed.

        Raises: PeerMisbehaved when the bytes are no frames or break a limit.
        """
        for start in range(0, len(data), READ_SIZE):
            piece = data[start : start + READ_SIZE]
            try:
                self._unpacker.feed(piece)
                self._fed += len(piece)
                self._is_large = self._is_large or self._fed - self._taken > BUFFER_SIZE
                for value in self._unpacker:
                    self._taken = self._unpacker.tell()
                    yield _check(value)
            except (ValueError, msgpack.UnpackException, RecursionError) as error:
                raise PeerMisbehaved(f"the peer sent what is no frame: {error or type(error).__name__}") from None
            self._shrink()

    def _shrink(self) -> None:
        """Give the buffer back when it has grown and holds nothing, no part of a frame either."""
        if self._is_large and self._taken == self._fed:
            self._unpacker, self._fed, self._taken, self._is_large = _make_unpacker(), 0, 0, False


def _make_unpacker() -> msgpack.Unpacker:
    return msgpack.Unpacker(
        use_list=False,
        read_size=BUFFER_SIZE,
        max_buffer_size=MAX_FRAME + READ_SIZE,
        max_array_len=4,
        max_map_len=0,
        max_ext_len=0,
        max_str_len=MAX_METHOD,
        max_bin_len=MAX_FRAME - _HEAD_ROOM,
    )


def _check(value: object) -> Frame:
    if type(value) is not tuple or tuple(map(type, value)) != _TYPES:
        raise PeerMisbehaved("the peer sent what is no frame: it must be [kind, id, method, body]")
    number, id, method, body = value
    kind = _KINDS.get(number)
    if kind is None or not 0 <= id < 1 << 63:
        raise PeerMisbehaved("the peer sent what is no frame: it has no such kind, or no such id")
    if len(body) > MAX_CONTROL_BODY and kind not in _BULKY:
        raise PeerMisbehaved(f"the peer sent a control frame of {len(body)} bytes; {MAX_CONTROL_BODY} are allowed")
    return Frame(kind, id, method, body)
