"""The in-memory memory adapter of the image store and of the exchange with registries.

Overlays alone are files, since a hypervisor is handed their paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ...protocols.access import LOCAL_ADMIN, Caller
from ...protocols.errors import ImageNotFound, InvalidRequest, Unsupported
from ...protocols.image import CatalogueEntry, Fault, Finding, Image, ImageCheck, Pushed
from ...protocols.operation import Progress
from ...protocols.reference import LOCAL, parse_reference
from ..files import disk_errors_named
from .boot import BootNeeds
from .disks import (
    MAX_SIZE,
    base_missing,
    check_overlay_size,
    check_size,
    detect_format,
    foreign_overlay,
    whole_sectors,
)
from .index import index_bytes
from .overlay import overlay_chain, write_overlay
from .port import IMPORTED, NODE, Export, Origin, Overlay, Report, Requester
from .receive import closed_after
from .signatures import HEAD
from .tag_index import Base, TagIndex, parse_new_name


class MemoryImageStore:
    """Images are forgotten with the object. A qcow2 disk is kept as it came: nobody reads it here."""

    def __init__(self) -> None:
        self._tags = TagIndex()
        self._lost: set[str] = set()
        self._contents: dict[str, bytes] = {}

    def lose(self, digest: str) -> None:
        """From now on the base's file is missing, as after a mishap on disk."""
        self._lost.add(digest)

    async def list_images(self) -> Sequence[Image]:
        return self._tags.images()

    async def get_image(self, ref: str) -> Image:
        return self._tags.get(ref)

    async def add_image(
        self,
        ref: str,
        content: AsyncIterable[bytes],
        *,
        report: Report,
        origin: Origin = IMPORTED,
        replace: bool = False,
    ) -> Image:
        name = parse_new_name(ref)
        received = bytearray()
        async with closed_after(content):
            async for data in content:
                received += data
                check_size(len(received), MAX_SIZE)
                report(Progress(done=len(received), unit="bytes", message="receiving"))
        _, size = detect_format(bytes(received[:HEAD]), MAX_SIZE, raw=origin.raw)
        check_size(len(received), MAX_SIZE)
        received += bytes(whole_sectors(len(received)) - len(received))
        index = index_bytes(bytes(received))
        target = self._tags.bind(name, index.digest, origin, replace=replace)
        base = Base(
            digest=index.digest,
            size=size or index.size,
            allocated=index.data_size,
            created_at=datetime.now(UTC),
            source=origin.source,
            owner=origin.caller.principal,
        )
        self._contents[index.digest] = bytes(received)
        self._lost.discard(index.digest)
        return self._tags.put(name, self._tags.adopted(base), target)

    async def add_disk(
        self, ref: str, disk: Overlay | Export, size: int, *, report: Report, origin: Origin, reset: bool = False
    ) -> Image:
        """No guest writes here: the image is the base, or the base made longer. Nothing is served in memory."""
        name = parse_new_name(ref)
        if isinstance(disk, Export):
            raise Unsupported("the memory adapter reads no disks by NBD")
        if reset:
            raise InvalidRequest("disks in memory have no file system", path="reset_identity")
        digest = disk.digest
        base = self._tags.disks.get(digest)
        if base is None or digest in self._lost:
            raise base_missing(digest)
        if not overlay_chain(disk.path, f"/memory/{digest}", size):
            raise foreign_overlay(disk.path)
        report(Progress(done=size, total=size, unit="bytes", message="converting"))
        if size != base.size:
            longer = self._contents[digest].ljust(size, b"\0")
            base = replace(base, digest=index_bytes(longer).digest, size=size, source=origin.source)
            self._contents[base.digest] = longer
        target = self._tags.bind(name, base.digest, origin, replace=False)
        return self._tags.put(name, base, target)

    async def remove_image(
        self, ref: str, *, used_by: Callable[[str], Sequence[str]], caller: Caller = LOCAL_ADMIN
    ) -> Image:
        removal = self._tags.plan_removal(ref, used_by, caller)
        self._tags.drop(removal)
        return removal.image

    async def prune_images(
        self, *, used_by: Callable[[str], Sequence[str]], everything: bool, dry_run: bool, caller: Caller = LOCAL_ADMIN
    ) -> Sequence[Image]:
        removals = self._tags.plan_prune(used_by, everything=everything, caller=caller)
        for removal in removals if not dry_run else ():
            self._tags.drop(removal)
        return [removal.image for removal in removals]

    async def fsck_images(
        self, *, used_by: Callable[[str], Sequence[str]], report: Report, caller: Caller = LOCAL_ADMIN
    ) -> ImageCheck:
        findings = []
        for digest, base in self._tags.disks.items():
            report(Progress(done=len(self._contents[digest]), unit="bytes", message="reading"))
            if digest in self._lost:
                names, vms = [str(name) for name in self._tags.names_of(digest)], list(used_by(digest))
                said = f"the disk of {', '.join(names) or digest} is missing"
                self._tags.replace_base(replace(base, damaged=True))
                findings.append(
                    Finding(fault=Fault.MISSING, message=said, mended=False, digest=digest, names=names, vms=vms)
                )
        read = sum(len(self._contents[digest]) for digest in self._tags.disks if digest not in self._lost)
        return ImageCheck(images=len(self._tags.disks), bytes=read, findings=findings)

    @property
    def problems(self) -> Sequence[str]:
        return [f"the disk of {digest} is missing" for digest in self._lost]

    async def boot_needs(self, digest: str) -> BootNeeds:
        if digest not in self._tags.disks or digest in self._lost:
            raise base_missing(digest)
        return BootNeeds()

    async def make_overlay(self, digest: str, path: Path, size: int) -> None:
        base = self._tags.disks.get(digest)
        if base is None or digest in self._lost:
            raise base_missing(digest)
        check_overlay_size(size, base.size)
        # In the loop's own thread: a virtual clock would jump ahead while another thread works.
        with disk_errors_named("the VM's disk"):
            write_overlay(path, f"/memory/{digest}", size, own=lambda _fd: None, durable=False)

    def contents_of(self, digest: str) -> bytes:
        """The bytes that the image was made from."""
        return self._contents[digest]


class MemoryImageExchange:
    """Registries in memory: what is pushed, or put there with `publish`, can be pulled by all who share `remote`."""

    def __init__(self, store: MemoryImageStore, remote: dict[str, bytes] | None = None) -> None:
        self._store = store
        self.remote: dict[str, bytes] = {} if remote is None else remote

    def publish(self, ref: str, content: bytes) -> None:
        """Put an image at a registry, or under a short name into the catalogue."""
        self.remote[str(parse_reference(ref))] = content

    async def find_image(self, ref: str) -> Image:
        return await self._store.get_image(ref)

    def catalogue(self) -> Sequence[CatalogueEntry]:
        names = [parse_reference(ref) for ref in self.remote if not ref.startswith("https://")]
        return [
            CatalogueEntry(name=name.name, source="memory", user="", about="")
            for name in names
            if name.registry == LOCAL
        ]

    def knows(self, ref: str) -> bool:
        reference = parse_reference(ref)
        return reference.registry != LOCAL or str(reference) in self.remote

    async def pull_image(
        self,
        ref: str,
        *,
        report: Report,
        name: str = "",
        sha256: str = "",
        requester: Requester = NODE,
        raw: bool = False,
    ) -> Image:
        is_url = ref.startswith(("https://", "http://"))
        if is_url != bool(sha256) or ref.startswith("http://"):
            raise InvalidRequest("a disk by https needs its sha256, and nothing else has one", path="sha256")
        key = ref if is_url else str(parse_reference(ref))
        if key not in self.remote:
            raise ImageNotFound(f"'{ref}' is neither in the catalogue nor at a registry")
        origin = Origin(ref, requester=requester, raw=raw)
        content = _one(self.remote[key])
        return await self._store.add_image(name or ref, content, report=report, origin=origin, replace=True)

    async def push_image(
        self, ref: str, target: str, *, report: Report, dry_run: bool = False, requester: Requester = NODE
    ) -> Pushed:
        image = await self._store.get_image(ref)
        where = parse_new_name(target)
        if where.registry == LOCAL:
            raise InvalidRequest(f"'{target}' names no registry; name one: registry/name:tag", path="target")
        if dry_run:
            return Pushed(image=image, target=str(where))
        content = self._store.contents_of(image.digest)
        self.remote[str(where)] = content
        report(Progress(done=len(content), total=len(content), unit="bytes", message="sent"))
        return Pushed(image=image, target=str(where), manifest=f"sha256:{hashlib.sha256(content).hexdigest()}")


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content
