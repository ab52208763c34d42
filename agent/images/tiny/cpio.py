"""Writes the `newc` archive that a Linux kernel takes as its first file system. Same files, same bytes."""

from __future__ import annotations

import stat
from pathlib import PurePosixPath


class Archive:
    """Folders come before what is in them; the first file of a name wins over none: a second one is a mistake."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str) -> None:
        for path in reversed([PurePosixPath(name), *PurePosixPath(name).parents]):
            if str(path) != "." and str(path) not in self._names:
                self._add(str(path), stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.folder(str(PurePosixPath(name).parent))
        self._add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        self.folder(str(PurePosixPath(name).parent))
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        self.folder(str(PurePosixPath(name).parent))
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def encode(self) -> bytes:
        return b"".join([*self._records, _record(0, "TRAILER!!!", 0)])

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if name in self._names:
            raise ValueError(f"{name} is in the archive already")
        self._names.add(name)
        self._records.append(_record(len(self._names), name, mode, data, device))


def _record(inode: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    text = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(text), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + text
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
