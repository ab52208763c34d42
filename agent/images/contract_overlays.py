"""What every image store must do with the disks of VMs: overlays on its images, and images made of them."""

from __future__ import annotations

import os
from pathlib import Path

from ...protocols.errors import (
    ImageDamaged,
    ImageExists,
    ImageNotFound,
    InvalidRequest,
    TwinshareError,
    WrongState,
)
from ...protocols.operation import Progress
from . import qcow2
from .contract_samples import MIB, pieces, qcow2_disk, quiet, raw_disk, refused
from .port import ImageStore, Origin, Overlay


async def check_overlays(store: ImageStore, folder: Path) -> None:
    image = await store.add_image("base", pieces(raw_disk(7)), report=quiet)
    other = await store.add_image("other", pieces(raw_disk(8)), report=quiet)
    path = folder / "disk.qcow2"
    await store.make_overlay(image.digest, path, 10 * MIB)
    header = qcow2.parse_header(path.read_bytes())
    assert header.size == 10 * MIB
    assert header.has_backing_file
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"a guest's data")
    written = path.read_bytes()
    await store.make_overlay(image.digest, path, 10 * MIB)
    assert path.read_bytes() == written, "what a guest wrote stays"
    await refused(WrongState, store.make_overlay(image.digest, path, 20 * MIB))
    await refused(WrongState, store.make_overlay(other.digest, path, 10 * MIB))
    (folder / "link.qcow2").symlink_to(folder / "elsewhere")
    await refused(WrongState, store.make_overlay(image.digest, folder / "link.qcow2", 10 * MIB))
    await refused(InvalidRequest, store.make_overlay(image.digest, folder / "small.qcow2", MIB - 512))
    await refused(InvalidRequest, store.make_overlay(image.digest, folder / "odd.qcow2", MIB + 1))
    await refused(ImageDamaged, store.make_overlay("blake3:" + "0" * 64, folder / "none.qcow2", MIB))
    await store.make_overlay(image.digest, folder / "exact.qcow2", MIB)
    assert sorted(p.name for p in folder.iterdir()) == ["disk.qcow2", "exact.qcow2", "link.qcow2"]


async def check_captures(store: ImageStore, folder: Path) -> None:
    image = await store.add_image("base", pieces(raw_disk(15)), report=quiet)
    overlay, size = folder / "disk.qcow2", 2 * MIB
    await store.make_overlay(image.digest, overlay, size)
    seen: list[Progress] = []
    made = await store.add_disk(
        "made:v1", Overlay(overlay, image.digest), size, report=seen.append, origin=Origin("vm one")
    )
    assert (made.name, made.tag, made.size, made.source) == ("made", "v1", size, "vm one")
    assert seen, "a capture tells how far it is"
    again = await store.add_disk("again", Overlay(overlay, image.digest), size, report=quiet, origin=Origin("vm one"))
    assert again.digest == made.digest, "what nobody has written to is the same image"

    async def is_refused(kind: type[TwinshareError], disk: Path, name: str = "x", size: int = size) -> None:
        overlay = Overlay(disk, image.digest if kind is not ImageDamaged else "blake3:" + "0" * 64)
        await refused(kind, store.add_disk(name, overlay, size, report=quiet, origin=Origin("")))

    await is_refused(ImageExists, overlay, "base")
    await is_refused(InvalidRequest, overlay, "../x")
    await is_refused(ImageDamaged, overlay)
    await is_refused(WrongState, overlay, size=MIB)
    await is_refused(WrongState, folder / "none")
    other = folder / "other.qcow2"
    other.write_bytes(qcow2_disk(size, "/etc/passwd"))
    await is_refused(WrongState, other)
    other.write_bytes(qcow2_disk(size))
    await is_refused(WrongState, other)
    await refused(ImageNotFound, store.get_image("x"))
