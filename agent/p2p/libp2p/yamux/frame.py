"""Bytes into yamux frames and back: no stream, no window, no clock.

A frame is a header of 12 bytes: version, kind, flags, stream id, length; a data frame is followed by `length` bytes.
The body of a data frame is handed on as it arrives, so the reader never holds more than an unfinished header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from sys import maxsize
from typing import Final, NamedTuple

DATA: Final = 0
WINDOW: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

HEADER_SIZE: Final = 12
_HEADER = struct.Struct("!BBHII")


class ProtocolError(Exception):
    """The far side broke the protocol: the connection cannot go on."""


class Header(NamedTuple):
    """`length` is the size of a data frame's body; credit, ping value or reason for the other kinds."""

    kind: int
    flags: int
    stream_id: int
    length: int


def encode(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return _HEADER.pack(0, kind, flags, stream_id, length)


class FrameReader:
    """Cuts what arrives into headers and pieces of bodies."""

    def __init__(self) -> None:
        self._held = b""
        self._body = 0
        self.taken = 0
        """Bytes of what was last fed that were taken in."""

    @property
    def at_boundary(self) -> bool:
        """No data frame lacks any of its body."""
        return not self._body

    def feed(self, data: bytes | memoryview, enough: int = maxsize) -> Iterator[Header | memoryview]:
        """Yield each header, and after a data frame's header its body in one or more pieces, none of them empty.

        Stops before a header once it has taken `enough` bytes in; `taken` says how many it has. Run the iterator to its
        end before the next call. Raises: ProtocolError.
        """
        held = len(self._held)
        if held:
            data, self._held = self._held + data, b""
        view, at, size = memoryview(data), 0, len(data)
        while at < size:
            if self._body:
                piece = view[at : at + self._body]
                at += len(piece)
                self._body -= len(piece)
                yield piece
                continue
            if at >= enough:
                break
            if size - at < HEADER_SIZE:
                self._held, at = bytes(view[at:]), size
                break
            version, kind, flags, stream_id, length = _HEADER.unpack_from(view, at)
            at += HEADER_SIZE
            if version != 0 or kind > GO_AWAY:
                raise ProtocolError(f"no yamux frame: version {version}, kind {kind}")
            if kind == DATA:
                self._body = length
            yield Header(kind, flags, stream_id, length)
        self.taken = at - held
