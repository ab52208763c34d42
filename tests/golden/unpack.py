"""A golden data directory, unpacked where a test wants it."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

GOLDEN = Path(__file__).parent
RECORDED_AT = "/tmp/twinshare-golden"


def unpack(target: Path, version: str = "v1") -> Path:
    """`target` as the agent of that version left it; the files that name the directory name this one."""
    with tarfile.open(GOLDEN / version / "data.tar.gz") as archive:
        archive.extractall(target.parent, filter=_renamed(target.name))  # noqa: S202 - our own archive, filtered
    for name in ("fake.json", "twinshare.toml"):
        file = target / name
        file.write_text(file.read_text().replace(RECORDED_AT, str(target)))
    for disk in target.glob("vms/*/disk.qcow2"):
        _rebase(disk, target)
    return target


def _renamed(name: str) -> tarfile._FilterFunction:
    def rename(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        return tarfile.tar_filter(member.replace(name=name + member.name.removeprefix("data")), folder)

    return rename


def _rebase(disk: Path, target: Path) -> None:
    """Name the base of an overlay where it is now: the path stands in the first cluster, with room behind it."""
    with disk.open("r+b") as file:
        offset, size = struct.unpack(">QI", file.read(20)[8:])
        file.seek(offset)
        moved = file.read(size).decode().replace(RECORDED_AT, str(target)).encode()
        file.seek(offset)
        file.write(moved)
        file.seek(16)
        file.write(struct.pack(">I", len(moved)))
