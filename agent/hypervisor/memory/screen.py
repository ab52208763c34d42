"""The screen of a domain in memory: an RFB 3.8 server (RFC 6143) whose picture has another colour after each key."""

from __future__ import annotations

import struct
from contextlib import suppress

import trio

WIDTH, HEIGHT = 64, 48
_VERSION = b"RFB 003.008\n"
_NO_SECURITY = b"\x01\x01"
# 32 bits a pixel, depth 24, little endian, true colour: blue, green, red, unused.
_FORMAT = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_COLOURS = ((20, 112, 90), (179, 46, 38), (20, 107, 179))
# What follows the first byte of each message of a viewer; two say how much more there is.
_SET_FORMAT, _SET_ENCODINGS, _UPDATE_REQUEST, _KEY_EVENT, _CUT_TEXT = 0, 2, 3, 4, 6
_LENGTHS = {_SET_FORMAT: 19, _SET_ENCODINGS: 3, _UPDATE_REQUEST: 9, _KEY_EVENT: 7, 5: 5, _CUT_TEXT: 7}


class _Viewer:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = bytearray()
        self._keys = 0
        self._owed = False
        self._shifts = (16, 8, 0)

    async def serve(self) -> None:
        """Serve until the viewer closes, or says what is no message. Raises: EOFError."""
        await self._stream.send_all(_VERSION)
        await self._read(len(_VERSION))
        await self._stream.send_all(_NO_SECURITY)
        await self._read(1)
        await self._stream.send_all(bytes(4))
        await self._read(1)
        name = b"memory"
        await self._stream.send_all(struct.pack(">HH", WIDTH, HEIGHT) + _FORMAT + struct.pack(">I", len(name)) + name)
        while (kind := (await self._read(1))[0]) in _LENGTHS:
            await self._take(kind, await self._read(_LENGTHS[kind]))

    async def _take(self, kind: int, body: bytes) -> None:
        if kind == _SET_FORMAT:
            # The shifts of red, green and blue; all viewers ask for 32 bits a pixel.
            self._shifts = (body[13], body[14], body[15])
        elif kind == _SET_ENCODINGS:
            await self._read(4 * int.from_bytes(body[1:]))
        elif kind == _CUT_TEXT:
            await self._read(abs(int.from_bytes(body[3:], signed=True)))
        elif kind == _KEY_EVENT and body[0]:
            self._keys += 1
            await self._update(full=self._owed)
        elif kind == _UPDATE_REQUEST:
            # An incremental request is answered at the next change.
            await self._update(full=not body[0])

    async def _update(self, *, full: bool) -> None:
        self._owed = not full
        if full:
            colour = zip(_COLOURS[self._keys % len(_COLOURS)], self._shifts, strict=True)
            pixels = struct.pack("<I", sum(value << shift for value, shift in colour)) * (WIDTH * HEIGHT)
            await self._stream.send_all(struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0) + pixels)

    async def _read(self, count: int) -> bytes:
        while len(self._data) < count:
            part = await self._stream.receive_some(4096)
            if not part:
                raise EOFError
            self._data += part
        data = bytes(self._data[:count])
        del self._data[:count]
        return data


async def show_screen(stream: trio.SocketStream) -> None:
    """Show a screen to one viewer until it closes."""
    with suppress(EOFError):
        await _Viewer(stream).serve()
