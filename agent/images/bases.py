"""The bases on disk and their names: how one gets its place, is named, given up, and found again after a crash.

Names are answered from memory; files and database are written before a change is answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import trio

from ...protocols.errors import InsufficientResources
from ...protocols.image import Image
from ...protocols.reference import Reference
from .database import Database
from .files import discard, full_disk_named, sync_directory, write_durably
from .index import BadIndexError, ChunkIndex
from .partial import sweep
from .shelf import Base, Held, Removal, Shelf, UsedBy


def make_folders(root: Path) -> None:
    """Blocking. The user that runs QEMU passes through to the bases, but lists nothing."""
    if not root.is_absolute():
        raise ValueError("the folder of the image store must be absolute: overlays name it")
    for folder, mode in ((root, 0o711), (root / "raw", 0o711), (root / "partial", 0o711), (root / "idx", 0o700)):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        folder.chmod(mode)


class Bases:
    """What the store's folder holds."""

    def __init__(self, root: Path, shelf: Shelf, database: Database) -> None:
        self.root = root
        self.shelf = shelf
        self._database = database
        # Held while names and bases change place, which is short; never while content streams in.
        self._changing = trio.Lock()

    def path(self, digest: str) -> Path:
        """Where the raw disk of `digest` is."""
        return self.root / "raw" / f"{digest.partition(':')[2]}.raw"

    def index_path(self, digest: str) -> Path:
        return self.root / "idx" / f"{digest.partition(':')[2]}.idx"

    async def clear_away(self, broken: Sequence[str]) -> None:
        """Remove what a crash left: scratch files, and the bases of these digests."""

        def work() -> None:
            sweep(self.root / "partial")
            for scratch in (self.root / "idx").glob(".*"):
                discard(scratch)

        await trio.to_thread.run_sync(work)
        for digest in broken:
            await self._clear(digest)

    def indexes(self) -> Iterable[tuple[ChunkIndex, Path]]:
        """The index and the disk of each base, the newest first; an index that cannot be read is left out. Blocking."""
        for digest in reversed(list(self.shelf.bases)):
            try:
                yield ChunkIndex.decode(self.index_path(digest).read_bytes()), self.path(digest)
            except (OSError, BadIndexError):
                continue

    async def give(
        self, name: Reference, base: Base, manifest: str, scratch: Path, index: ChunkIndex, *, replace: bool
    ) -> Image:
        """Let the name stand for the base; if it is new, the finished disk in `scratch` gets its place.

        Raises: ImageExists, InsufficientResources.
        """
        async with self._changing:
            self.shelf.check_free(name, base.digest, replace=replace)
            # A change that has begun is finished: it is short, and half of it would need undoing.
            with trio.CancelScope(shield=True):
                if base.digest not in self.shelf.bases:
                    await self._place(scratch, base, index)
                await self._database.give(name, Held(base.digest, manifest))
            return self.shelf.put(name, base, manifest)

    async def rename(self, name: Reference, digest: str, manifest: str, *, replace: bool) -> Image | None:
        """Let the name stand for a base that is here; None when there is none. Raises: ImageExists."""
        async with self._changing:
            base = self.shelf.bases.get(digest)
            if base is None:
                return None
            self.shelf.check_free(name, digest, replace=replace)
            with trio.CancelScope(shield=True):
                await self._database.give(name, Held(digest, manifest))
            return self.shelf.put(name, base, manifest)

    async def remove(self, ref: str, used_by: UsedBy) -> Image:
        """Raises: ImageNotFound, ImageInUse."""
        async with self._changing:
            # Nothing is awaited between asking who uses it and taking it off: no overlay can come in between.
            removal = self.shelf.plan_removal(ref, used_by)
            await self._take_away(removal)
        return removal.image

    async def prune(self, used_by: UsedBy, *, everything: bool, dry_run: bool) -> list[Image]:
        """Remove what no VM stands on; what was, or would be, removed."""
        removed = []
        async with self._changing:
            for removal in self.shelf.plan_prune(used_by, everything=everything):
                # Asked again: while the ones before went, a VM may have been begun on this one.
                if removal.base is None or used_by(removal.base.digest):
                    continue
                if not dry_run:
                    await self._take_away(removal)
                removed.append(removal.image)
        return removed

    async def _take_away(self, removal: Removal) -> None:
        self.shelf.drop(removal)
        with trio.CancelScope(shield=True):
            try:
                await self._database.take(removal.names, removal.base.digest if removal.base else None)
            except InsufficientResources:
                self.shelf.restore(removal)
                raise
            if removal.base is not None:
                await self._clear(removal.base.digest)

    async def _place(self, scratch: Path, base: Base, index: ChunkIndex) -> None:
        """Move a finished base to where it stays; the database knows of it before and is told after."""
        await self._database.announce(base)

        def work() -> None:
            write_durably(self.index_path(base.digest), index.encode())
            scratch.replace(self.path(base.digest))
            sync_directory(self.path(base.digest).parent)

        try:
            with full_disk_named("the image"):
                await trio.to_thread.run_sync(work)
        except (InsufficientResources, OSError):
            await self._clear(base.digest)
            raise

    async def _clear(self, digest: str) -> None:
        """Remove the files of a base, then what the database says of it."""

        def work() -> None:
            discard(self.path(digest))
            discard(self.index_path(digest))

        await trio.to_thread.run_sync(work)
        await self._database.strike(digest)
