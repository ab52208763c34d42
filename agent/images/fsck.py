"""Reads every disk of the store again, and restores what is kept beside them: rows, indexes, metadata, permissions.

The disks are the truth. One that is not what its name says is marked: nothing is made of it until it is taken in anew,
and it stays in its place, for VMs may stand on it. Every step is whole in itself; running it again finds the rest.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from ...protocols.image import Fault, Finding, ImageCheck
from ...protocols.operation import Progress
from ..files import discard, disk_errors_named
from .disk_scan import DiskScan, mend_permissions, scan_disk, stamp_of
from .index import BadIndexError, ChunkIndex
from .metadata import SUFFIX as METADATA_SUFFIX
from .metadata import ImageMetadata, read_metadata
from .partial import leftovers
from .port import Report
from .repository import FOLDERS, DiskRepository, write_index
from .tag_index import Base, UsedBy

_DISK = re.compile(r"([0-9a-f]{64})\.raw")
_BESIDE = re.compile(r"([0-9a-f]{64})\.(?:idx|json)")
_CURE = "pull or import it anew, or remove it"


class Fsck:
    """One check of all images. `in_use` tells the scratch files that are at work; `removes` what is left over."""

    def __init__(
        self,
        repository: DiskRepository,
        *,
        used_by: UsedBy,
        in_use: Callable[[], Collection[Path]],
        report: Report,
        removes: bool,
    ) -> None:
        self._repository, self._used_by, self._in_use, self._report = repository, used_by, in_use, report
        self._removes = removes
        self._findings: list[Finding] = []
        self._done = self._total = 0

    async def run(self) -> ImageCheck:
        """Raises: InsufficientResources when what is mended finds no room."""
        await self._folders()
        digests = await trio.to_thread.run_sync(self._candidates)
        for digest in digests:
            look = await trio.to_thread.run_sync(self._read, digest)
            async with self._repository.changing:
                with trio.CancelScope(shield=True), disk_errors_named("what is kept beside the images"):
                    await self._settle(digest, look)
        await self._sweep()
        self._repository.unlisted = 0
        return ImageCheck(images=len(digests), bytes=self._done, findings=self._findings)

    # -- looking: blocking, in a worker thread

    def _candidates(self) -> list[str]:
        """The digests that the database or a file names; of the files without a row the newest metadata file first."""
        listed = list(self._repository.tags.disks)
        found = [
            match[1] for path in (self._repository.root / "raw").iterdir() if (match := _DISK.fullmatch(path.name))
        ]
        others = {f"blake3:{name}" for name in found} - set(listed)
        order = sorted(others, key=lambda digest: _modified(self._repository.metadata_path(digest)), reverse=True)
        for digest in (*listed, *order):
            with suppress(FileNotFoundError):
                seen = self._repository.path(digest).lstat()
                self._total += min(seen.st_size, seen.st_blocks * 512)
        return [*listed, *order]

    def _read(self, digest: str) -> DiskScan:
        path = self._repository.path(digest)
        mended = mend_permissions(path)
        if mended is not None:
            said = "could be changed or could not be read" + ("" if mended else "; its owner is another user")
            self._find(Fault.PERMISSIONS, f"the disk of {{}} {said}", digest, mended=mended)
        return scan_disk(path, self._on_progress, self._repository.root / "partial")

    def _on_progress(self, count: int) -> None:
        trio.from_thread.check_cancelled()
        self._done += count
        progress = Progress(done=self._done, total=max(self._total, self._done), unit="bytes", message="reading")
        trio.from_thread.run_sync(self._report, progress)

    # -- deciding

    async def _settle(self, digest: str, look: DiskScan) -> None:
        """Judge a disk, unless it was removed or taken in anew while it was read."""
        path, base = self._repository.path(digest), self._repository.tags.disks.get(digest)
        if stamp_of(path) != look.stamp or (look.stamp is None and base is None):
            return
        if look.index is None or look.index.digest != digest:
            await self._mark(digest, look, base)
            return
        whole = Base(
            digest=digest,
            size=look.size,
            allocated=look.allocated,
            created_at=datetime.fromtimestamp(look.modified, UTC),
            source="found by fsck",
        )
        if base is not None:
            whole = replace(base, size=look.size, allocated=look.allocated, damaged=False)
        await trio.to_thread.run_sync(self._mend_index, digest, look.index)
        if base is None:
            restored = await self._restore(whole)
            said = "was in no list, and is again" if restored else "was in no list; its name is not known any more"
            self._find(Fault.RESTORED, f"the disk of {{}} {said}", digest)
            return
        if base.damaged:
            self._find(Fault.HEALED, "the disk of {} is whole again", digest)
        elif base.size != whole.size:
            self._find(Fault.ROW, "what the list said of {} was wrong", digest)
        await self._write(whole)

    async def _mark(self, digest: str, look: DiskScan, base: Base | None) -> None:
        """Never give this disk to anybody."""
        metadata = await trio.to_thread.run_sync(read_metadata, self._repository.metadata_path(digest))
        size = base.size if base else metadata.size if metadata else look.size
        if base is None:
            made = datetime.fromtimestamp(look.modified, UTC)
            base = Base(digest=digest, size=size, allocated=look.allocated, created_at=made, source="found by fsck")
            await self._restore(replace(base, damaged=True))
        else:
            await self._write(replace(base, allocated=look.allocated, damaged=True))
        if look.stamp is None:
            fault, said = Fault.MISSING, "is missing"
        elif look.size < size:
            fault, said = Fault.CUT_SHORT, f"is cut short: {look.size} of {size} bytes"
        else:
            fault, said = Fault.DAMAGED, "is not what its digest stands for"
        self._find(fault, f"the disk of {{}} {said}; {_CURE}", digest, mended=False)

    async def _restore(self, base: Base) -> bool:
        """Restore the row of a base that is in no list, and the names in its metadata; return whether there was one."""
        metadata = await trio.to_thread.run_sync(read_metadata, self._repository.metadata_path(base.digest))
        tags, names = self._repository.tags, {}
        if metadata is not None:
            base = replace(
                base,
                created_at=metadata.created_at,
                source=metadata.source,
                labels=metadata.labels,
                owner=metadata.owner,
            )
            base = replace(base, size=metadata.size) if base.damaged else base
            known = metadata.references(base.digest)
            names = {name: held for name, held in known.items() if name not in tags.names}
        await self._repository.database.restore(base, names)
        tags.replace_base(base)
        tags.names.update(names)
        await self._repository.note(base.digest)
        return bool(names)

    async def _write(self, base: Base) -> None:
        """Bring the row and the metadata file up to date."""
        if base != self._repository.tags.disks[base.digest]:
            await self._repository.database.restore(base, {})
            self._repository.tags.replace_base(base)
        metadata = await trio.to_thread.run_sync(read_metadata, self._repository.metadata_path(base.digest))
        if metadata != ImageMetadata.of(base, self._repository.tags.names_of(base.digest)):
            await self._repository.note(base.digest)

    def _mend_index(self, digest: str, index: ChunkIndex) -> None:
        path = self._repository.index_path(digest)
        with suppress(OSError, BadIndexError):
            if ChunkIndex.read(path).digest == digest:
                return
        write_index(path, index)
        self._find(Fault.INDEX, "the index of {} was missing or wrong, and is made anew", digest)

    # -- what lies about

    async def _folders(self) -> None:
        def work() -> None:
            for name, mode in FOLDERS.items():
                folder = self._repository.root / name
                if stat.S_IMODE(folder.stat().st_mode) != mode:
                    folder.chmod(mode)
                    self._find(Fault.PERMISSIONS, f"the folder images/{name} had other permissions than it should")

        await trio.to_thread.run_sync(work)

    async def _sweep(self) -> None:
        """Find scratch files that nobody is writing, and what stands beside no disk; name what is not ours.

        Whose they were is not known any more, so only an admin's check removes them.
        """
        # Listed before it is asked what is in use: what begins meanwhile is not in the list.
        found = await trio.to_thread.run_sync(lambda: leftovers(self._repository.root / "partial", keep_for=math.inf))
        stale = [path for path in found if path not in self._in_use()]
        async with self._repository.changing:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._clear, stale)

    def _clear(self, stale: list[Path]) -> None:
        known = {digest.partition(":")[2] for digest in self._repository.tags.disks}
        for folder, pattern in (("raw", _DISK), ("idx", _BESIDE)):
            for path in (self._repository.root / folder).iterdir():
                match = pattern.fullmatch(path.name)
                if match and match[1] in known:
                    continue
                if path.name.startswith(".") or (match and path.suffix in (".idx", METADATA_SUFFIX)):
                    stale.append(path)
                elif not match:
                    said = f"images/{folder}/{path.name[:100]} is nothing of the image store; look at it and remove it"
                    self._find(Fault.STRAY, said, mended=False)
        for path in stale:
            if self._removes:
                discard(path)
            said = "was left over and is removed" if self._removes else "is left over; an admin's check removes it"
            self._find(Fault.TEMPORARY, f"images/{path.parent.name}/{path.name[:100]} {said}", mended=self._removes)

    def _find(self, fault: Fault, message: str, digest: str = "", *, mended: bool = True) -> None:
        """`{}` in the message stands for the image's names. Called from worker threads too: it only appends."""
        tags = self._repository.tags
        names = [str(name) for name in tags.names_of(digest)] if digest else []
        vms = list(self._used_by(digest)) if digest and not mended else []
        if digest:
            message = message.replace("{}", ", ".join(names) or digest)
        if vms:
            message += f"; VMs that stand on it: {', '.join(vms)}"
        self._findings.append(Finding(fault=fault, message=message, mended=mended, digest=digest, names=names, vms=vms))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
