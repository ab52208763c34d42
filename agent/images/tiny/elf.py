"""Reads what ELF files and kernel modules say they need. Bytes in, names out."""

from __future__ import annotations

import struct

_DYNAMIC, _NEEDED, _STRTAB = 2, 1, 5
_LOAD = 1


def needed_libraries(data: bytes) -> list[str]:
    """The shared libraries that a 64-bit little-endian ELF file asks for; none for a static one."""
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    offset, entry_size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + i * entry_size) for i in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
    if dynamic is None:
        return []
    tags = list(struct.iter_unpack("<qQ", data[dynamic[2] : dynamic[2] + dynamic[5]]))
    address = next(value for tag, value in tags if tag == _STRTAB)
    load = next(s for s in segments if s[0] == _LOAD and s[3] <= address < s[3] + s[5])
    strings = address - load[3] + load[2]
    names = (data[strings + value : data.index(b"\0", strings + value)] for tag, value in tags if tag == _NEEDED)
    return [name.decode() for name in names]


def module_dependencies(data: bytes) -> list[str]:
    """The other modules that a kernel module names in its `.modinfo` section."""
    place = data.find(b"\0depends=")
    if place < 0:
        return []
    text = data[place + 9 : data.index(b"\0", place + 9)].decode()
    return [name for name in text.split(",") if name]
