"""A golden data directory, unpacked where a test wants it."""

from __future__ import annotations

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
    return target


def _renamed(name: str) -> tarfile._FilterFunction:
    def rename(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        return tarfile.tar_filter(member.replace(name=name + member.name.removeprefix("data")), folder)

    return rename
