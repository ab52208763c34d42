"""The image store on disk: bases that never change, named by what they hold, and a small database of their names.

In the store's folder: `raw/<digest>.raw`, sparse, mode 0444, the bytes; `idx/<digest>.idx`, the chunk index, whose
hash the digest is; `partial/`, what is being taken in; `images.db`. A base comes into its place by a rename, after
every byte of it was hashed and synced; a start clears away what a crash left half done.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from ...protocols.errors import InsufficientResources
from ...protocols.image import Image
from ...protocols.operation import Progress
from ...protocols.reference import Reference
from .chunker import chunks
from .convert import RunTool, check_room, convert_qcow2, inspect_qcow2
from .database import Database, open_database
from .disks import MAX_SIZE, Format, base_missing, check_overlay_size, damaged, whole_sectors
from .files import discard, full_disk_named, sync_directory, write_durably
from .index import ChunkIndex, index_chunks
from .intake import receive
from .overlay import Own, write_overlay
from .port import Report
from .shelf import Base, Removal, Shelf, parse_new_name


@asynccontextmanager
async def open_image_store(
    root: Path, *, run_tool: RunTool, own: Own, max_size: int = MAX_SIZE
) -> AsyncIterator[DiskImageStore]:
    """Open the store in the folder `root`, which is made if need be; one process at a time.

    `run_tool` runs qemu-img on files below `root`; `own` gives an open file to the user whom it and QEMU run as.
    `max_size` in bytes bounds the disks that are taken in.
    """
    await trio.to_thread.run_sync(_make_folders, root)
    async with open_database(root / "images.db") as database:
        shelf, broken = await database.load()
        store = DiskImageStore(root, shelf, database, run_tool, own, max_size)
        await store.clear_away(broken)
        yield store


def _make_folders(root: Path) -> None:
    if not root.is_absolute():
        raise ValueError("the folder of the image store must be absolute: overlays name it")
    # The user that runs QEMU passes through to the bases, but lists nothing.
    for folder, mode in ((root, 0o711), (root / "raw", 0o711), (root / "partial", 0o711), (root / "idx", 0o700)):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        folder.chmod(mode)


@dataclass(frozen=True, slots=True)
class _Scratch:
    path: Path
    fd: int


class DiskImageStore:
    """Names are answered from memory; files and database are written before a change is answered."""

    def __init__(
        self, root: Path, shelf: Shelf, database: Database, run_tool: RunTool, own: Own, max_size: int
    ) -> None:
        self._root = root
        self._shelf = shelf
        self._database = database
        self._run_tool = run_tool
        self._own = own
        self._max_size = max_size
        # Held while names and bases change place, which is short; never while content streams in.
        self._changing = trio.Lock()

    async def clear_away(self, broken: Sequence[str]) -> None:
        """Remove what a crash left: scratch files, and the bases of these digests."""

        def work() -> None:
            for folder in ("partial", "idx"):
                for scratch in (self._root / folder).glob(".*" if folder == "idx" else "*"):
                    discard(scratch)

        await trio.to_thread.run_sync(work)
        for digest in broken:
            await self._clear_base(digest)

    def base_path(self, digest: str) -> Path:
        """Where the raw disk of `digest` is."""
        return self._root / "raw" / f"{digest.partition(':')[2]}.raw"

    def _index_path(self, digest: str) -> Path:
        return self._root / "idx" / f"{digest.partition(':')[2]}.idx"

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
        async with self._scratch() as incoming, self._scratch() as flat:
            with full_disk_named("the image"):
                received = await receive(content, incoming.fd, max_size=self._max_size, report=report)
            disk, size = incoming, received.size
            if received.format is Format.QCOW2:
                disk, size = flat, await self._flatten(incoming, flat, report)
            index, base = await self._seal(disk, size, report, source)
            return await self._give(name, disk, index, base, replace=replace)

    async def _flatten(self, qcow2: _Scratch, flat: _Scratch, report: Report) -> int:
        """Convert a qcow2 file to a raw one; the size of the disk."""
        self._own(qcow2.fd)
        size = await inspect_qcow2(self._run_tool, qcow2.path, self._max_size)
        space = os.statvfs(self._root)
        await check_room(self._run_tool, qcow2.path, space.f_bavail * space.f_frsize)
        report(Progress(done=0, total=size, unit="bytes", message="converting"))
        self._own(flat.fd)
        await convert_qcow2(self._run_tool, qcow2.path, flat.path)
        if os.fstat(flat.fd).st_size != whole_sectors(size):
            raise damaged("its size is not what its header says")
        return whole_sectors(size)

    async def _seal(self, disk: _Scratch, size: int, report: Report, source: str) -> tuple[ChunkIndex, Base]:
        """Hash every byte of a raw disk that nobody else can change any more."""

        def work() -> tuple[ChunkIndex, int]:
            os.fchown(disk.fd, os.geteuid(), os.getegid())
            os.fchmod(disk.fd, 0o444)
            index = index_chunks(size, _cancellable(chunks(disk.fd, size)))
            os.fsync(disk.fd)
            return index, os.fstat(disk.fd).st_blocks * 512

        report(Progress(done=0, total=size, unit="bytes", message="hashing"))
        with full_disk_named("the image"):
            index, allocated = await trio.to_thread.run_sync(work)
        now = datetime.now(UTC)
        return index, Base(digest=index.digest, size=size, allocated=allocated, created_at=now, source=source)

    async def _give(self, name: Reference, disk: _Scratch, index: ChunkIndex, base: Base, *, replace: bool) -> Image:
        """Let the name stand for the base, and put the base in its place if it is new."""
        async with self._changing:
            self._shelf.check_free(name, base.digest, replace=replace)
            # A change that has begun is finished: it is short, and half of it would need undoing.
            with trio.CancelScope(shield=True):
                if base.digest not in self._shelf.bases:
                    await self._place(disk.path, base, index)
                await self._database.give(name, base.digest)
            return self._shelf.put(name, base)

    async def _place(self, scratch: Path, base: Base, index: ChunkIndex) -> None:
        """Move a finished base to where it stays; the database knows of it before and is told after."""
        await self._database.announce(base)
        base_path, index_path = self.base_path(base.digest), self._index_path(base.digest)

        def work() -> None:
            write_durably(index_path, index.encode())
            scratch.replace(base_path)
            sync_directory(base_path.parent)

        try:
            with full_disk_named("the image"):
                await trio.to_thread.run_sync(work)
        except (InsufficientResources, OSError):
            await self._clear_base(base.digest)
            raise

    async def _clear_base(self, digest: str) -> None:
        """Remove the files of a base, then what the database says of it."""

        def work() -> None:
            discard(self.base_path(digest))
            discard(self._index_path(digest))

        await trio.to_thread.run_sync(work)
        await self._database.strike(digest)

    async def remove_image(self, ref: str, *, used_by: Callable[[str], Sequence[str]]) -> Image:
        async with self._changing:
            # Nothing is awaited between asking who uses it and taking it off: no overlay can come in between.
            removal = self._shelf.plan_removal(ref, used_by)
            self._shelf.drop(removal)
            with trio.CancelScope(shield=True):
                await self._take_away(removal)
        return removal.image

    async def _take_away(self, removal: Removal) -> None:
        try:
            await self._database.take(removal.names, removal.base.digest if removal.base else None)
        except InsufficientResources:
            self._shelf.restore(removal)
            raise
        if removal.base is not None:
            await self._clear_base(removal.base.digest)

    async def make_overlay(self, digest: str, path: Path, size: int) -> None:
        base = self._shelf.bases.get(digest)
        if base is None:
            raise base_missing(digest)
        check_overlay_size(size, base.size)
        base_path = self.base_path(digest)

        def work() -> None:
            if not base_path.is_file() or base_path.stat().st_size != base.size:
                raise base_missing(digest)
            write_overlay(path, str(base_path), size, own=self._own)

        with full_disk_named("the VM's disk"):
            await trio.to_thread.run_sync(work)
        if digest not in self._shelf.bases:
            raise base_missing(digest)

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[_Scratch]:
        """A new file that only this store can open; gone at the end unless it was moved to its place."""
        path = self._root / "partial" / f"{secrets.token_hex(16)}.raw"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield _Scratch(path, fd)
        finally:
            os.close(fd)
            # Freeing gigabytes takes its time: not in the loop's thread.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(discard, path)


def _cancellable(found: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    """In a worker thread: raises when the task that waits for it is cancelled."""
    for number, item in enumerate(found):
        if number % 64 == 0:
            trio.from_thread.check_cancelled()
        yield item
