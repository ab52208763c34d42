"""What lies in a node's data directory and belongs to nothing any more: listed with the command that removes it.

Nothing is removed by itself: the disk of a deleted VM may be all that is left of somebody's work.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from ...protocols.size import MIB
from .checks import Check, State

KEPT_DISK = "kept.json"
LIBVIRT = Path("hypervisor/c/libvirt/qemu")
SOCKET = Path("hypervisor/r/libvirt/libvirt-sock")
MAX_XML = 1 << 20
"""Bytes of a domain's file; the user of libvirt, whom QEMU runs as, could write more."""
RECENT = 86400.0
"""Seconds in which an unfinished download may be under way."""


def find_orphans(data_dir: Path, vms: Collection[str]) -> Iterator[Check]:
    """`vms` are the IDs of all VMs of the node, which runs. What this user may not read is left out."""
    with suppress(OSError):
        yield from _directories(data_dir / "vms", vms)
    with suppress(OSError):
        yield from _domains(data_dir, vms)
    with suppress(OSError):
        yield from _downloads(data_dir / "images" / "partial")
    with suppress(OSError):
        for path in sorted(data_dir.glob("*.damaged-*[Z0-9]")):
            yield _orphan(path, "what was left of a repaired database")


def _directories(root: Path, vms: Collection[str]) -> Iterator[Check]:
    for path in sorted(root.iterdir()):
        if path.name not in vms:
            yield _orphan(path, _kept_disk(path / KEPT_DISK) or "files of a VM that the node does not have")


def _kept_disk(note: Path) -> str:
    """What a disk was that was kept when its VM was deleted; empty for other files."""
    with suppress(OSError, msgspec.DecodeError, KeyError, TypeError):
        return f"the kept disk of the deleted VM '{msgspec.json.decode(note.read_bytes())['vm']['name']}'"
    return ""


def _domains(data_dir: Path, vms: Collection[str]) -> Iterator[Check]:
    """Domains of the node's own libvirt daemon that are no VMs of the node, made by other tools."""
    for path in sorted((data_dir / LIBVIRT).glob("*.xml")):
        if path.stat().st_size > MAX_XML:
            continue
        with suppress(ET.ParseError):
            domain = ET.parse(path)  # noqa: S314 - libvirt's own file
            if (id := domain.findtext("uuid", "")) and id not in vms:
                uri = shlex.quote(f"qemu+unix:///session?socket={data_dir / SOCKET}")
                name = domain.findtext("name", "")
                yield Check(
                    "orphan", State.NOTE, f"the domain '{name}' in the node's libvirt is no VM of the node",
                    cure=f"virsh -c {uri} undefine {id}",
                )  # fmt: skip


def _downloads(folder: Path) -> Iterator[Check]:
    for path in sorted(folder.iterdir()):
        if time.time() - path.stat().st_mtime > RECENT:
            yield _orphan(path, "an unfinished download, which the next pull of the image goes on with")


def _orphan(path: Path, what: str) -> Check:
    size = sum(file.lstat().st_blocks * 512 for file in (path, *path.rglob("*"))) / MIB
    return Check("orphan", State.NOTE, f"{path}: {what} ({size:.1f} MiB)", cure=f"rm -r {shlex.quote(str(path))}")
