"""The images of this node, as one caller may use them: `ImageService`, on the machine that holds them."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from ..protocols.access import Caller, Role
from ..protocols.errors import ImageExists, ImageNotFound
from ..protocols.image import CatalogueEntry, Image, ImageCheck, Pruned, PullRequest, Pushed, PushRequest
from ..protocols.operation import Progress
from ..protocols.reference import Reference
from .events import EventLog
from .images.port import ImageExchange, ImageStore, Report
from .images.tag_index import parse_new_name
from .images.tiny.build import REF as TINY
from .images.tiny.build import build_tiny
from .journal.operations import Operations
from .journal.run import Recipe, Release, Run, nothing_claimed
from .vm.captures import CaptureRequest, Captures
from .vm.lifecycle import require_state
from .vm.local import VmRoom

CHUNK = 1 << 20


class ImageRequest(msgspec.Struct, frozen=True):
    """What an operation on an image was asked."""

    image: str


class PruneRequest(msgspec.Struct, frozen=True):
    """Which images go, or would go."""

    all: bool
    dry_run: bool


class FsckRequest(msgspec.Struct, frozen=True):
    """A check of all images asks for nothing more."""


@dataclass(slots=True)
class ImageRoom:
    """What the images of a node are kept with, and the VMs that stand on them."""

    store: ImageStore
    exchange: ImageExchange
    operations: Operations
    events: EventLog
    vms: VmRoom
    scratch: Path
    captures: Captures

    def add_recipes(self) -> None:
        table = self.operations.recipes
        table["remove_image"] = Recipe(ImageRequest, Image, self._remove, frees=True)
        table["build_tiny"] = Recipe(ImageRequest, Image, self._build_tiny)
        table["pull_image"] = Recipe(PullRequest, Image, self._pull)
        table["push_image"] = Recipe(PushRequest, Pushed, self._push)
        table["capture_image"] = Recipe(CaptureRequest, Image, self._capture)
        table["fsck_images"] = Recipe(FsckRequest, ImageCheck, self._fsck, frees=True)
        table["prune_images"] = Recipe(PruneRequest, Pruned, self._prune, frees=True)

    async def _remove(self, run: Run) -> Image:
        gone = await self.store.remove_image(run.notes["ref"], used_by=self.vms.all_users_of)
        self._tell("image.removed", gone)
        return gone

    async def _pull(self, run: Run) -> Image:
        asked: PullRequest = run.request
        image = await self.vms.supply.pull(asked, run.report)
        self._tell("image.added", image)
        return image

    async def _push(self, run: Run) -> Pushed:
        asked: PushRequest = run.request
        return await self.exchange.push_image(asked.image, asked.target, report=run.report, dry_run=asked.dry_run)

    async def _prune(self, run: Run) -> Pruned:
        asked: PruneRequest = run.request
        gone = await self.store.prune_images(used_by=self.vms.all_users_of, everything=asked.all, dry_run=asked.dry_run)
        if not asked.dry_run:
            for image in gone:
                self._tell("image.removed", image)
        return Pruned(images=list(gone), freed=sum(image.allocated for image in gone), dry_run=asked.dry_run)

    async def _fsck(self, run: Run) -> ImageCheck:
        return await self.store.fsck_images(used_by=self.vms.users_of, report=run.report)

    async def _capture(self, run: Run) -> Image:
        image = await self.captures.make(run)
        self._tell("image.added", image)
        return image

    async def _build_tiny(self, run: Run) -> Image:
        disk = await build_tiny(self.scratch, run.report)
        return await self.add(TINY, _read(disk), run.report, source="build-tiny", replace=True)

    async def add(
        self, ref: str, content: AsyncIterable[bytes], report: Report, *, source: str, replace: bool = False
    ) -> Image:
        image = await self.store.add_image(ref, content, report=report, source=source, replace=replace)
        self._tell("image.added", image)
        return image

    def _tell(self, type: str, image: Image) -> None:
        self.events.publish(type, {"name": image.name, "tag": image.tag, "digest": image.digest})

    async def whole_name(self, ref: str) -> str:
        """The name under which the store has the image that `ref` means. Raises: ImageNotFound, InvalidRequest."""
        try:
            await self.store.get_image(ref)
        except ImageNotFound:
            found = await self.exchange.find_image(ref)
            return str(Reference(registry=found.registry, name=found.name, tag=found.tag))
        return ref

    def with_users(self, image: Image) -> Image:
        return msgspec.structs.replace(image, used_by=self.vms.users_of(image.digest))


class LocalImages:
    """`ImageService` for one caller."""

    def __init__(self, room: ImageRoom, caller: Caller) -> None:
        self._room, self._caller = room, caller

    async def list_images(self) -> list[Image]:
        return [self._room.with_users(image) for image in await self._room.store.list_images()]

    async def get_image(self, image: str) -> Image:
        return self._room.with_users(await self._room.exchange.find_image(image))

    async def remove_image(self, image: str) -> Image:
        async def admit(run: Run) -> Release:
            run.notes = {"ref": await self._room.whole_name(image)}
            return nothing_claimed

        gone: Image = await self._room.operations.run(self._caller, "remove_image", image, ImageRequest(image), admit)
        return gone

    async def prune_images(self, all: bool = False, dry_run: bool = False) -> Pruned:
        gone: Pruned = await self._operate("prune_images", "images", PruneRequest(all=all, dry_run=dry_run))
        return gone

    async def fsck_images(self) -> ImageCheck:
        checked: ImageCheck = await self._operate("fsck_images", "images", FsckRequest())
        return checked

    async def list_catalogue(self) -> list[CatalogueEntry]:
        return list(self._room.exchange.catalogue())

    async def pull_image(self, request: PullRequest) -> Image:
        image: Image = await self._operate("pull_image", request.name or request.image, request)
        return self._room.with_users(image)

    async def push_image(self, request: PushRequest) -> Pushed:
        pushed: Pushed = await self._operate("push_image", request.image, request)
        return pushed

    async def _operate(self, kind: str, target: str, request: msgspec.Struct) -> Any:
        async def admit(run: Run) -> Release:
            return nothing_claimed

        return await self._room.operations.run(self._caller, kind, target, request, admit)

    async def capture_image(self, vm: str, name: str, reset_identity: bool = False) -> Image:
        async def admit(run: Run) -> Release:
            record = self._room.vms.owned(self._caller, vm)
            require_state("capture_image", record.domain.name, record.domain.state)
            await self._check_free(name)
            run.notes = {"id": record.domain.id}
            return nothing_claimed

        asked = CaptureRequest(vm=vm, name=name, reset_identity=reset_identity)
        made: Image = await self._room.operations.run(self._caller, "capture_image", vm, asked, admit)
        return made

    async def _check_free(self, name: str) -> None:
        """Raises: ImageExists, InvalidRequest for what is no new image's name."""
        try:
            await self._room.store.get_image(str(parse_new_name(name)))
        except ImageNotFound:
            return
        raise ImageExists(f"'{name}' is an image already; remove it first or choose another name")

    async def build_tiny(self) -> Image:
        made: Image = await self._operate("build_tiny", TINY, ImageRequest(TINY))
        return made

    async def import_image(self, ref: str, content: AsyncIterable[bytes]) -> Image:
        """Take an image in from a stream. Not journalled: it is there whole when this returns, or not at all.

        Raises: Forbidden, and what `ImageStore.add_image` raises.
        """
        self._caller.require(Role.OPERATOR, "import_image")
        return await self._room.add(ref, content, _unheard, source="import")


async def _read(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while data := await file.read(CHUNK):
            yield data


def _unheard(progress: Progress) -> None:
    """Whoever uploads sees the progress at the other end of the stream."""
