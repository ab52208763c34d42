"""The in-memory twin of the image store. Overlays alone are files, since a hypervisor is handed their paths."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ...protocols.image import Image
from ...protocols.operation import Progress
from .disks import MAX_SIZE, base_missing, check_overlay_size, check_size, detect_format, whole_sectors
from .files import full_disk_named
from .index import index_bytes
from .intake import closed_after
from .overlay import write_overlay
from .port import Report
from .shelf import Base, Shelf, parse_new_name


class FakeImageStore:
    """Images are forgotten with the object. A qcow2 disk is kept as it came: nobody reads it here."""

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._shelf = Shelf()
        self._max_size = max_size
        self._lost: set[str] = set()

    def lose(self, digest: str) -> None:
        """From now on the base's file is missing, as after a mishap on disk."""
        self._lost.add(digest)

    async def list_images(self) -> Sequence[Image]:
        return self._shelf.images()

    async def get_image(self, ref: str) -> Image:
        return self._shelf.get(ref)

    async def add_image(
        self,
        ref: str,
        content: AsyncIterable[bytes],
        *,
        report: Report,
        source: str = "import",
        replace: bool = False,
    ) -> Image:
        name = parse_new_name(ref)
        received = bytearray()
        async with closed_after(content):
            async for data in content:
                received += data
                check_size(len(received), self._max_size)
                report(Progress(done=len(received), unit="bytes", message="receiving"))
        _, size = detect_format(bytes(received[:512]), self._max_size)
        check_size(len(received), self._max_size)
        received += bytes(whole_sectors(len(received)) - len(received))
        index = index_bytes(bytes(received))
        self._shelf.check_free(name, index.digest, replace=replace)
        base = Base(
            digest=index.digest,
            size=size or index.size,
            allocated=index.data_size,
            created_at=datetime.now(UTC),
            source=source,
        )
        return self._shelf.put(name, base)

    async def remove_image(self, ref: str, *, used_by: Callable[[str], Sequence[str]]) -> Image:
        removal = self._shelf.plan_removal(ref, used_by)
        self._shelf.drop(removal)
        return removal.image

    async def prune_images(
        self, *, used_by: Callable[[str], Sequence[str]], everything: bool, dry_run: bool
    ) -> Sequence[Image]:
        removals = self._shelf.plan_prune(used_by, everything=everything)
        for removal in removals if not dry_run else ():
            self._shelf.drop(removal)
        return [removal.image for removal in removals]

    async def make_overlay(self, digest: str, path: Path, size: int) -> None:
        base = self._shelf.bases.get(digest)
        if base is None or digest in self._lost:
            raise base_missing(digest)
        check_overlay_size(size, base.size)
        # In the loop's own thread: a virtual clock would jump ahead while another thread works.
        with full_disk_named("the VM's disk"):
            write_overlay(path, f"/memory/{digest}", size, own=lambda _fd: None, durable=False)
