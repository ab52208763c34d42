"""Undoes gzip, zstd and xz while a disk streams in. No input makes it hold more than a few MiB at a time."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

import zstandard

from .disks import Packing, damaged

STEP = 64 * 1024
MAX_OUTPUT = 1 << 20
_XZ_MEMORY = 256 << 20
_ZSTD_WINDOW = 128 << 20
# A zstd block of four bytes can stand for 128 KiB, and zstandard has no bound on its output: feed it little.
_ZSTD_STEP = 512

ZEROS = bytes(1 << 20)
ZERO_FRAME = b"\x28\xb5\x2f\xfd\xa0" + len(ZEROS).to_bytes(4, "little") + (b"\x02\0\x10\0" * 7 + b"\x03\0\x10\0")
"""`ZEROS` as a zstd frame (RFC 8878): eight blocks of 128 KiB, each one byte that is repeated. Holes are sent so."""

Read = Callable[[int], bytes]


class _Stream(Protocol):
    """One gzip member, xz stream or zstd frame."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...

    @property
    def rest(self) -> bytes | None:
        """What came after the end of the stream; None before its end."""
        ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._stream.eof:
            yield self._stream.decompress(data, MAX_OUTPUT)
            data = self._stream.unconsumed_tail

    @property
    def rest(self) -> bytes | None:
        return self._stream.unused_data if self._stream.eof else None


class _Xz:
    def __init__(self) -> None:
        self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._stream.decompress(data, MAX_OUTPUT)
        while not self._stream.needs_input and not self._stream.eof:
            yield self._stream.decompress(b"", MAX_OUTPUT)

    @property
    def rest(self) -> bytes | None:
        return self._stream.unused_data if self._stream.eof else None


class _Zstd:
    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_STEP):
            yield self._stream.decompress(data[start : start + _ZSTD_STEP])
            if self._stream.eof:
                self._rest = self._stream.unused_data + data[start + _ZSTD_STEP :]
                return

    @property
    def rest(self) -> bytes | None:
        return self._rest if self._stream.eof else None


_STREAMS: dict[Packing, type[_Gzip | _Xz | _Zstd]] = {
    Packing.GZIP: _Gzip,
    Packing.XZ: _Xz,
    Packing.ZSTD: _Zstd,
}


def unpack(read: Read, packing: Packing) -> Iterator[bytes]:
    """The plain bytes of what `read` returns; `read(n)` gives at most n bytes and none at the end.

    Several streams one after another count as one, as the tools have it. Raises: InvalidRequest for damaged data.
    """
    if packing is Packing.NONE:
        while data := read(MAX_OUTPUT):
            yield data
        return
    try:
        yield from _streams(read, _STREAMS[packing])
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise damaged(f"its {packing} compression is broken ({error})") from None
    except EOFError:
        raise damaged(f"its {packing} compression ends too early") from None


def _streams(read: Read, kind: Callable[[], _Stream]) -> Iterator[bytes]:
    data = read(STEP)
    while data:
        if kind is _Zstd and data.startswith(ZERO_FRAME):
            data = yield from _holes(data)
            data = data or read(STEP)
            continue
        stream = kind()
        while stream.rest is None:
            if not data:
                raise EOFError
            yield from stream.feed(data)
            data = b"" if stream.rest is not None else read(STEP)
        # gzip files may be padded with zeros.
        data = (stream.rest or read(STEP)).lstrip(b"\0")


def _holes(data: bytes) -> Generator[bytes, None, bytes]:
    """Yield what leading frames of zeros stand for, which is many times faster than to unpack them; the rest."""
    place = 0
    while data.startswith(ZERO_FRAME, place):
        yield ZEROS
        place += len(ZERO_FRAME)
    return data[place:]
