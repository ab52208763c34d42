"""The image store on disk: bases that never change, named by what they hold, and a small database of their names.

In the store's folder: `raw/<digest>.raw`, sparse, mode 0444, the bytes; `idx/<digest>.idx`, the chunk index, whose
hash the digest is; `idx/<digest>.json`, the metadata that a check reads when the database is lost; `partial/`, what is
being taken in; `images.db`. A base comes into its place by a rename, after every byte of it was hashed and synced; a
start clears away what a crash left half done.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Role
from ...protocols.errors import InsufficientResources, InvalidRequest
from ...protocols.image import Image, ImageCheck
from ...protocols.operation import Progress
from ..files import Own, discard, disk_errors_named
from .boot import BootNeeds, read_boot_needs
from .chunker import chunks
from .convert import (
    RunTool,
    check_qcow2,
    check_room,
    convert_qcow2,
    exported_disk,
    inspect_qcow2,
    overlay_disk,
    whole_disk,
)
from .database import open_image_database
from .disks import (
    MAX_SIZE,
    Format,
    base_missing,
    check_overlay_size,
    damaged,
    foreign_overlay,
    require_raw_disk,
    whole_sectors,
)
from .fsck import Fsck
from .index import ChunkIndex, index_chunks
from .overlay import overlay_chain, write_overlay
from .parallel import Turns
from .partial import SUFFIX, Partial
from .port import IMPORTED, Export, ImportRequest, Origin, Overlay, Report
from .receive import receive
from .rechunk import index_like
from .repository import DiskRepository, make_folders
from .reset import require_tools, reset_identity
from .scratch import Scratch, ScratchFolder, cancellable, is_recognised, open_partial, seal
from .signatures import HEAD
from .tag_index import Base, UsedBy, parse_new_name

Fetch = Callable[[Partial], Awaitable[None]]

RAW = "raw"
"""The label of an image whose disk cannot be recognised as one, and was taken in all the same."""


@asynccontextmanager
async def open_image_store(
    root: Path, *, run_tool: RunTool, own: Own, max_size: int = MAX_SIZE
) -> AsyncIterator[DiskImageStore]:
    """Open the store in the folder `root`, which is made if need be; one process at a time.

    `run_tool` runs qemu-img on files below `root`; `own` gives an open file to the user whom it and QEMU run as.
    `max_size` in bytes bounds the disks that are taken in.
    """
    await trio.to_thread.run_sync(make_folders, root)
    async with open_image_database(root / "images.db") as database:
        tags, broken = await database.load()
        repository = DiskRepository(root, tags, database)
        await repository.clear_away(broken)
        yield DiskImageStore(repository, run_tool, own, max_size)


class DiskImageStore:
    """`ImageStore` on files. Chunks of another node or a registry come in by `add_chunks`."""

    def __init__(self, repository: DiskRepository, run_tool: RunTool, own: Own, max_size: int) -> None:
        self.repository = repository
        self.max_size = max_size
        self.partials = repository.root / "partial"
        self._run_tool = run_tool
        self._own = own
        self._turns = Turns()
        self._scratch = ScratchFolder(self.partials)
        self._checking = trio.Lock()

    def base_path(self, digest: str) -> Path:
        """Where the raw disk of `digest` is."""
        return self.repository.path(digest)

    async def list_images(self) -> Sequence[Image]:
        return self.repository.tags.images()

    async def get_image(self, ref: str) -> Image:
        return self.repository.tags.get(ref)

    async def remove_image(self, ref: str, *, used_by: UsedBy, caller: Caller = LOCAL_ADMIN) -> Image:
        return await self.repository.remove(ref, used_by, caller)

    async def prune_images(
        self, *, used_by: UsedBy, everything: bool, dry_run: bool, caller: Caller = LOCAL_ADMIN
    ) -> Sequence[Image]:
        return await self.repository.prune(used_by, caller, everything=everything, dry_run=dry_run)

    async def fsck_images(self, *, used_by: UsedBy, report: Report, caller: Caller = LOCAL_ADMIN) -> ImageCheck:
        check = Fsck(
            self.repository,
            used_by=used_by,
            in_use=lambda: self._scratch.in_use,
            report=report,
            removes=caller.role is Role.ADMIN,
        )
        async with self._checking:
            return await check.run()

    @property
    def problems(self) -> Sequence[str]:
        return self.repository.problems

    async def add_image(
        self,
        ref: str,
        content: AsyncIterable[bytes],
        *,
        report: Report,
        origin: Origin = IMPORTED,
        replace: bool = False,
    ) -> Image:
        request = ImportRequest(parse_new_name(ref), origin, report)
        return await self.add_content(content, request, replace=replace)

    async def add_content(self, content: AsyncIterable[bytes], request: ImportRequest, *, replace: bool) -> Image:
        """`add_image` for a name that was read."""
        async with self._scratch.open() as incoming, self._scratch.open() as flat:
            with disk_errors_named("the image"):
                received = await receive(
                    content, incoming.fd, max_size=self.max_size, report=request.report, raw=request.origin.raw
                )
            disk, size = incoming, received.size
            if received.format is Format.QCOW2:
                self._own(incoming.fd)
                disk, size = flat, await inspect_qcow2(self._run_tool, incoming.path, self.max_size)
                await self._flatten(whole_disk(incoming.path), size, flat, request.report)
                await check_qcow2(self._run_tool, incoming.path)
            return await self._keep(disk, whole_sectors(size), request, replace=replace)

    async def add_disk(
        self, ref: str, disk: Overlay | Export, size: int, *, report: Report, origin: Origin, reset: bool = False
    ) -> Image:
        request = ImportRequest(parse_new_name(ref), origin, report)
        if reset:
            require_tools()
        if isinstance(disk, Overlay):
            found = await self._check_overlay(disk, size)
        else:
            found = exported_disk(disk.socket, disk.name)
        async with self._scratch.open() as flat:
            await self._flatten(found, size, flat, report)
            if reset:
                report(Progress(message="taking out the machine's identity"))
                await reset_identity(flat, size, run_tool=self._run_tool, scratch=self._scratch, own=self._own)
            return await self._keep(flat, size, request, replace=False, like=disk.digest)

    async def _check_overlay(self, disk: Overlay, size: int) -> list[str]:
        base = self.base_path(disk.digest)
        if disk.digest not in self.repository.tags.disks:
            raise base_missing(disk.digest)
        chain = await trio.to_thread.run_sync(overlay_chain, disk.path, str(base), size)
        if not chain:
            raise foreign_overlay(disk.path)
        return overlay_disk(chain, base)

    async def _keep(self, disk: Scratch, size: int, request: ImportRequest, *, replace: bool, like: str = "") -> Image:
        """Hash a raw disk, and give it its place and its name. `like` is the digest of the base it was made from."""
        request.report(Progress(done=0, total=size, unit="bytes", message="hashing"))
        with disk_errors_named("the image"):
            index, allocated = await trio.to_thread.run_sync(self._seal, disk.fd, size, like)
        recognised = await trio.to_thread.run_sync(is_recognised, disk.path)
        labels = {} if recognised else {RAW: "true"}
        return await self._give(disk.path, index, allocated, request.labelled(labels), replace=replace)

    async def _give(
        self, path: Path, index: ChunkIndex, allocated: int, request: ImportRequest, *, replace: bool
    ) -> Image:
        """A finished disk, of which `allocated` bytes take space, gets its place and its name."""
        origin = request.origin
        base = Base(
            digest=index.digest,
            size=index.size,
            allocated=allocated,
            created_at=datetime.now(UTC),
            source=origin.source,
            labels=origin.labels or {},
            owner=origin.caller.principal,
        )
        return await self.repository.give(request, base, path, index, replace=replace)

    def _seal(self, fd: int, size: int, like: str) -> tuple[ChunkIndex, int]:
        """Hash every byte of a raw disk, which nobody else can change any more; the space it takes. Blocking."""
        os.fchown(fd, os.geteuid(), os.getegid())
        known = self.repository.index(like)
        if known is None:
            index = index_chunks(size, cancellable(chunks(fd, size)), self.partials)
        else:
            index = index_like(fd, size, known, trio.from_thread.check_cancelled, self.partials)
        return index, seal(fd)

    async def add_chunks(self, index: ChunkIndex, fetch: Fetch, request: ImportRequest) -> Image:
        """Put a disk together: of what an earlier attempt left, what other images hold, and what `fetch` brings.

        A name that stands for another image moves on to this one.

        `fetch` fills every gap of the disk it is given. When it fails, what is there stays for the next attempt.
        Raises: Forbidden before anything is fetched when the name is another's; InsufficientResources, InvalidRequest
        for what is no disk (in both cases nothing stays); and what `fetch` raises.
        """
        self.repository.tags.bind(request.name, index.digest, request.origin, replace=True)
        async with self._turns.take(index.digest):
            known = await self.repository.rename(request.name, index.digest, request.origin)
            if known is not None:
                return known
            path = self.partials / f"{index.digest.partition(':')[2]}{SUFFIX}"
            try:
                with disk_errors_named("the image"):
                    allocated = await self._fill(path, index, fetch, request)
                return await self._give(path, index, allocated, request, replace=True)
            except (InsufficientResources, InvalidRequest):
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(discard, path)
                raise

    async def _fill(self, path: Path, index: ChunkIndex, fetch: Fetch, request: ImportRequest) -> int:
        """The space that the disk takes when it has no gaps any more."""
        fd = open_partial(path)
        try:
            partial = Partial(path, fd, index)
            here = Progress(done=0, total=index.data_size, unit="bytes", message="looking for what is here already")
            request.report(here)
            await trio.to_thread.run_sync(partial.survey, trio.from_thread.check_cancelled)
            await trio.to_thread.run_sync(partial.borrow, self.repository.indexes(), trio.from_thread.check_cancelled)
            if partial.gaps:
                await fetch(partial)
            if partial.gaps:
                raise ValueError("the disk still has gaps")
            if not request.origin.raw and (request.origin.labels or {}).get(RAW) != "true":
                require_raw_disk(await trio.to_thread.run_sync(os.pread, fd, HEAD, 0))
            return await trio.to_thread.run_sync(seal, fd)
        finally:
            os.close(fd)

    async def boot_needs(self, digest: str) -> BootNeeds:
        try:
            return await trio.to_thread.run_sync(read_boot_needs, self.base_path(digest))
        except OSError:
            raise base_missing(digest) from None

    async def make_overlay(self, digest: str, path: Path, size: int) -> None:
        base = self.repository.tags.whole(digest)
        if base is None:
            raise base_missing(digest)
        check_overlay_size(size, base.size)
        base_path = self.base_path(digest)

        def work() -> None:
            if not base_path.is_file() or base_path.stat().st_size != base.size:
                raise base_missing(digest)
            write_overlay(path, str(base_path), size, own=self._own)

        with disk_errors_named("the VM's disk"):
            await trio.to_thread.run_sync(work)
        if self.repository.tags.whole(digest) is None:
            raise base_missing(digest)

    async def _flatten(self, disk: Sequence[str], size: int, flat: Scratch, report: Report) -> None:
        """Write the disk that the qemu-img arguments `disk` name as a raw file."""
        space = os.statvfs(self.partials)
        await check_room(self._run_tool, disk, space.f_bavail * space.f_frsize)
        report(Progress(done=0, total=size, unit="bytes", message="converting"))
        self._own(flat.fd)
        await convert_qcow2(self._run_tool, disk, flat.path)
        if os.fstat(flat.fd).st_size != whole_sectors(size):
            raise damaged("its size is not what its header says")
