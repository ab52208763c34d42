"""The directories of this node's VMs: `<root>/<id>` with disk.qcow2, seed.iso, and what QEMU writes there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...protocols.errors import InsufficientResources
from ..files import atomic_write

KEPT_DISK = "kept.json"
"""The note beside a disk whose VM was deleted without it."""


@dataclass(frozen=True, slots=True)
class VmFiles:
    """All methods but `directory` access the disk: call them in a thread. `chown` gives a path to QEMU's user."""

    root: Path
    chown: Callable[[Path], None]

    def directory(self, id: str) -> Path:
        return self.root / id

    def make_directory(self, id: str) -> None:
        self.directory(id).mkdir(mode=0o700, exist_ok=True)
        self.chown(self.directory(id))

    def write_seed(self, id: str, content: bytes) -> None:
        """Raises: InsufficientResources."""
        path = self.directory(id) / "seed.iso"
        try:
            atomic_write(path, content)
        except OSError as error:
            raise InsufficientResources(f"cannot write {path.name}: {error.strerror}") from None
        self.chown(path)

    def remove(self, id: str) -> None:
        if self.directory(id).exists():
            shutil.rmtree(self.directory(id))

    def keep_disk(self, id: str, note: Mapping[str, Any]) -> None:
        """Remove all but the disk, and write beside it what it was: `note` has the VM and its image's digest."""
        directory = self.directory(id)
        if not directory.is_dir():
            return
        atomic_write(directory / KEPT_DISK, msgspec.json.encode(note))
        for path in directory.iterdir():
            if path.name not in {"disk.qcow2", KEPT_DISK}:
                path.unlink(missing_ok=True)

    def kept_disks(self, digest: str) -> Sequence[str]:
        """The names of deleted VMs whose disks were kept and have an image as their base."""
        notes = [msgspec.json.decode(file.read_bytes()) for file in self.root.glob(f"*/{KEPT_DISK}")]
        return [note["vm"]["name"] for note in notes if note["digest"] == digest]

    def has_vms(self) -> bool:
        """Whether any VM has a directory here, whatever the hypervisor says."""
        return any(not (directory / KEPT_DISK).exists() for directory in self.root.iterdir())
