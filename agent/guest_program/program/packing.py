"""The part of msgpack that control messages use: nil, booleans, integers, floats, text, bytes, lists and maps."""

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def pack(value: object) -> bytes:
    """Return a value as msgpack. Raises: TypeError for another type."""
    parts: "list[bytes]" = []
    _pack(value, parts)
    return b"".join(parts)


def _pack(value: object, parts: "list[bytes]") -> None:
    if value is None:
        parts.append(b"\xc0")
    elif value is True or value is False:
        parts.append(b"\xc3" if value else b"\xc2")
    elif isinstance(value, int):
        parts.append(struct.pack(">BQ", 0xCF, value) if value >= 0 else struct.pack(">Bq", 0xD3, value))
    elif isinstance(value, float):
        parts.append(struct.pack(">Bd", 0xCB, value))
    elif isinstance(value, bytes):
        parts.append(struct.pack(">BI", 0xC6, len(value)) + value)
    elif isinstance(value, str):
        data = value.encode("utf-8", "replace")
        parts.append(struct.pack(">BI", 0xDB, len(data)) + data)
    elif isinstance(value, (list, tuple)):
        parts.append(struct.pack(">BI", 0xDD, len(value)))
        for item in value:
            _pack(item, parts)
    elif isinstance(value, dict):
        parts.append(struct.pack(">BI", 0xDF, len(value)))
        for key, item in value.items():
            _pack(key, parts)
            _pack(item, parts)
    else:
        raise TypeError("cannot pack a {}".format(type(value)))


_FIXED = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
# The head of what has a length: its kind, and the format of the length.
_SIZED = {
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"), 0xD9: ("text", ">B"), 0xDA: ("text", ">H"),
    0xDB: ("text", ">I"), 0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


class Unpacker:
    """Reads one value. Raises: ValueError, struct.error for what is not understood."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self) -> object:
        first = self._data[self._at]
        self._at += 1
        if first in _FIXED:
            return _FIXED[first]
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first <= 0x8F:
            return self._map(first & 0x0F)
        if first <= 0x9F:
            return [self.value() for _ in range(first & 0x0F)]
        if first <= 0xBF:
            return self._take(first & 0x1F).decode()
        return self._sized(first)

    def _sized(self, first: int) -> object:
        if first not in _SIZED:
            raise ValueError("unknown msgpack type {:#x}".format(first))
        kind, head = _SIZED[first]
        size = int(self._number(head))
        if kind == "bytes":
            return self._take(size)
        if kind == "text":
            return self._take(size).decode()
        if kind == "list":
            return [self.value() for _ in range(size)]
        return self._map(size)

    def _map(self, size: int) -> "dict[object, object]":
        found = {}
        for _ in range(size):
            key = self.value()
            found[key] = self.value()
        return found

    def _number(self, head: str) -> float:
        (value,) = struct.unpack(head, self._take(struct.calcsize(head)))
        return value  # type: ignore[no-any-return]  # struct knows no types

    def _take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) < size:
            raise ValueError("the message is cut short")
        self._at += size
        return part


def unpack_map(data: bytes) -> "dict[Any, Any]":
    """Read a message. Raises: ValueError, IndexError, struct.error."""
    value = Unpacker(data).value()
    if not isinstance(value, dict):
        raise ValueError("a message is a map")  # noqa: TRY004 - the type of what was sent, not of an argument
    return value
