"""The bases on disk and their names: how one gets its place, is named, given up, and found again after a crash.

Names are answered from memory; files and database are written before a change is answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog
import trio

from ...protocols.access import Caller
from ...protocols.image import Image
from ...protocols.reference import Reference
from ..database import PASSING_FAULTS
from ..files import atomic_file, discard, disk_errors_named, durable_rename, write_all
from .database import ImageDatabase
from .index import BadIndexError, ChunkIndex
from .metadata import SUFFIX as METADATA_SUFFIX
from .metadata import ImageMetadata, write_metadata
from .partial import leftovers
from .port import ImportRequest, Origin
from .tag_index import Base, Removal, TagIndex, TagTarget, UsedBy

log = structlog.get_logger(__name__)

# The user that runs QEMU passes through to the bases, but lists nothing.
FOLDERS = {"": 0o711, "raw": 0o711, "partial": 0o711, "idx": 0o700}


def make_folders(root: Path) -> None:
    """Blocking."""
    if not root.is_absolute():
        raise ValueError("the folder of the image store must be absolute: overlays name it")
    for name, mode in FOLDERS.items():
        folder = root / name
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        folder.chmod(mode)


def write_index(path: Path, index: ChunkIndex) -> None:
    """Blocking. Raises: OSError."""
    with atomic_file(path) as fd:
        offset = 0
        for part in index.parts():
            write_all(fd, memoryview(part), offset)
            offset += len(part)


class DiskRepository:
    """What the store's folder holds.

    Whoever holds `changing` may change names and places; it is never held while content streams in.
    """

    def __init__(self, root: Path, tags: TagIndex, database: ImageDatabase) -> None:
        self.root = root
        self.tags = tags
        self.database = database
        self.changing = trio.Lock()
        # Disks that are in the folder and not in the database: only a check of all images finds out what they are.
        self.unlisted = 0

    def path(self, digest: str) -> Path:
        """Where the raw disk of `digest` is."""
        return self.root / "raw" / f"{digest.partition(':')[2]}.raw"

    def index_path(self, digest: str) -> Path:
        return self.root / "idx" / f"{digest.partition(':')[2]}.idx"

    def metadata_path(self, digest: str) -> Path:
        return self.index_path(digest).with_suffix(METADATA_SUFFIX)

    @property
    def problems(self) -> list[str]:
        """What is known to be wrong with the images, and what to do."""
        said = []
        if self.unlisted:
            said.append(f"{self.unlisted} files of the image store are in no list: run `twinshare image fsck`")
        if damaged := [base.digest for base in self.tags.disks.values() if base.damaged]:
            names = [str(name) for digest in damaged for name in self.tags.names_of(digest)] or damaged
            said.append(f"damaged images, to be pulled or imported anew or removed: {', '.join(names[:10])}")
        return said

    async def clear_away(self, broken: Sequence[str]) -> None:
        """Remove what a crash left: scratch files, and the bases of these digests."""

        def work() -> None:
            for scratch in (*leftovers(self.root / "partial"), *(self.root / "idx").glob(".*")):
                discard(scratch)
            for digest in set(self.tags.disks) - set(broken):
                if not self.metadata_path(digest).exists():
                    self._write_metadata(digest)

        await trio.to_thread.run_sync(work)
        for digest in broken:
            await self._clear(digest)
        found = await trio.to_thread.run_sync(lambda: {path.name for path in (self.root / "raw").iterdir()})
        self.unlisted = len(found - {self.path(digest).name for digest in self.tags.disks})

    def index(self, digest: str) -> ChunkIndex | None:
        """The index of a base, or None where there is none that can be read. Blocking."""
        if digest not in self.tags.disks:
            return None
        try:
            found = ChunkIndex.read(self.index_path(digest))
        except (OSError, BadIndexError):
            return None
        return found if found.digest == digest else None

    def indexes(self) -> Iterable[tuple[ChunkIndex, Path]]:
        """The index and the disk of each base, the newest first; an index that cannot be read is left out. Blocking."""
        for digest in reversed(list(self.tags.disks)):
            if (index := self.index(digest)) is not None:
                yield index, self.path(digest)

    async def give(
        self, request: ImportRequest, base: Base, scratch: Path, index: ChunkIndex, *, replace: bool
    ) -> Image:
        """Let the name stand for the base; if it is new, the finished disk in `scratch` gets its place.

        Raises: ImageExists, Forbidden, InsufficientResources.
        """
        async with self.changing:
            target = self.tags.bind(request.name, base.digest, request.origin, replace=replace)
            base = self.tags.adopted(base)
            # A change that has begun is finished: it is short, and half of it would need undoing.
            new = base.digest not in self.tags.disks
            with trio.CancelScope(shield=True):
                try:
                    if self.tags.whole(base.digest) is None:
                        await self._place(scratch, base, index)
                    await self.database.give(request.name, target)
                except (*PASSING_FAULTS, OSError):
                    if new:
                        await self._clear(base.digest)
                    raise
            return await self._named(request.name, base, target)

    async def rename(self, name: Reference, digest: str, origin: Origin) -> Image | None:
        """Let the name stand for a base that is here; None when there is none. Raises: Forbidden."""
        async with self.changing:
            base = self.tags.whole(digest)
            if base is None:
                return None
            target = self.tags.bind(name, digest, origin, replace=True)
            with trio.CancelScope(shield=True):
                await self.database.give(name, target)
            return await self._named(name, base, target)

    async def _named(self, name: Reference, base: Base, target: TagTarget) -> Image:
        """Follow a name in the database: update the tags, and the metadata files of its new and old base."""
        before = self.tags.names.get(name)
        image = self.tags.put(name, base, target)
        with trio.CancelScope(shield=True):
            await self.note(base.digest, *([before.digest] if before else []))
        return image

    async def note(self, *digests: str) -> None:
        """Bring the metadata files of bases up to date."""

        def work() -> None:
            for digest in set(digests) & self.tags.disks.keys():
                self._write_metadata(digest)

        await trio.to_thread.run_sync(work)

    def _write_metadata(self, digest: str) -> None:
        try:
            write_metadata(
                self.metadata_path(digest), ImageMetadata.of(self.tags.disks[digest], self.tags.names_of(digest))
            )
        except OSError as error:
            # It is the second record of the two: on a full disk the first one does.
            log.warning("an image's metadata file cannot be written", digest=digest, error=str(error))

    async def remove(self, ref: str, used_by: UsedBy, caller: Caller) -> Image:
        """Raises: ImageNotFound, ImageInUse, Forbidden."""
        async with self.changing:
            # Nothing is awaited between asking who uses it and taking it off: no overlay can come in between.
            removal = self.tags.plan_removal(ref, used_by, caller)
            await self._take_away(removal)
        return removal.image

    async def prune(self, used_by: UsedBy, caller: Caller, *, everything: bool, dry_run: bool) -> list[Image]:
        """Remove what is the caller's and no VM stands on; what was, or would be, removed."""
        removed = []
        async with self.changing:
            for removal in self.tags.plan_prune(used_by, everything=everything, caller=caller):
                # Asked again: while the ones before went, a VM may have been begun on this one.
                if removal.base is None or used_by(removal.base.digest):
                    continue
                if not dry_run:
                    await self._take_away(removal)
                removed.append(removal.image)
        return removed

    async def _take_away(self, removal: Removal) -> None:
        self.tags.drop(removal)
        with trio.CancelScope(shield=True):
            try:
                await self.database.take(removal.names, removal.base.digest if removal.base else None)
            except PASSING_FAULTS:
                self.tags.restore(removal)
                raise
            if removal.base is not None:
                await self._clear(removal.base.digest)
            await self.note(*(held.digest for held in removal.names.values()))

    async def _place(self, scratch: Path, base: Base, index: ChunkIndex) -> None:
        """Move a finished base to where it stays; the database knows of it before, and the row is marked whole after.

        In the place of a damaged one it needs no announcing: there is a row for it, and VMs may stand on the file.
        """
        is_new = base.digest not in self.tags.disks
        if is_new:
            await self.database.announce(base)

        def work() -> None:
            write_index(self.index_path(base.digest), index)
            durable_rename(scratch, self.path(base.digest))

        with disk_errors_named("the image"):
            await trio.to_thread.run_sync(work)
        if not is_new:
            await self.database.restore(base, {})

    async def _clear(self, digest: str) -> None:
        """Remove the files of a base, then what the database says of it."""

        def work() -> None:
            discard(self.path(digest))
            discard(self.index_path(digest))
            discard(self.metadata_path(digest))

        await trio.to_thread.run_sync(work)
        await self.database.strike(digest)
