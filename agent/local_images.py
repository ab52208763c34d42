"""The images of this node, as one caller may use them: `ImageService`, on the machine that holds them."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from ..protocols.access import Caller, Role
from ..protocols.image import Image
from ..protocols.operation import Progress
from .events import EventLog
from .images.port import ImageStore, Report
from .images.tiny.build import REF as TINY
from .images.tiny.build import build_tiny
from .operations import Operations
from .run import Recipe, Release, Run

CHUNK = 1 << 20


class ImageRequest(msgspec.Struct, frozen=True):
    """What an operation on an image was asked."""

    image: str


@dataclass(slots=True)
class ImageRoom:
    """What the images of a node are kept with. `used_by` names the VMs that stand on a digest."""

    store: ImageStore
    operations: Operations
    events: EventLog
    used_by: Callable[[str], Sequence[str]]
    scratch: Path

    def add_recipes(self) -> None:
        table = self.operations.recipes
        table["remove_image"] = Recipe(ImageRequest, Image, self._remove, frees=True)
        table["build_tiny"] = Recipe(ImageRequest, Image, self._build_tiny)

    async def _remove(self, run: Run) -> Image:
        gone = await self.store.remove_image(run.request.image, used_by=self.used_by)
        self.events.publish("image.removed", {"name": gone.name, "tag": gone.tag, "digest": gone.digest})
        return gone

    async def _build_tiny(self, run: Run) -> Image:
        disk = await build_tiny(self.scratch, run.report)
        return await self.add(TINY, _read(disk), run.report, source="build-tiny", replace=True)

    async def add(
        self, ref: str, content: AsyncIterable[bytes], report: Report, *, source: str, replace: bool = False
    ) -> Image:
        image = await self.store.add_image(ref, content, report=report, source=source, replace=replace)
        self.events.publish("image.added", {"name": image.name, "tag": image.tag, "digest": image.digest})
        return image

    def with_users(self, image: Image) -> Image:
        return msgspec.structs.replace(image, used_by=list(self.used_by(image.digest)))


class LocalImages:
    """`ImageService` for one caller."""

    def __init__(self, room: ImageRoom, caller: Caller) -> None:
        self._room, self._caller = room, caller

    async def list_images(self) -> list[Image]:
        return [self._room.with_users(image) for image in await self._room.store.list_images()]

    async def get_image(self, image: str) -> Image:
        return self._room.with_users(await self._room.store.get_image(image))

    async def remove_image(self, image: str) -> Image:
        async def admit(run: Run) -> Release:  # noqa: ARG001
            await self._room.store.get_image(image)
            return _nothing

        gone: Image = await self._room.operations.run(self._caller, "remove_image", image, ImageRequest(image), admit)
        return gone

    async def build_tiny(self) -> Image:
        async def admit(run: Run) -> Release:  # noqa: ARG001
            return _nothing

        made: Image = await self._room.operations.run(self._caller, "build_tiny", TINY, ImageRequest(TINY), admit)
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


def _nothing() -> None:
    """The release of an operation that claims nothing."""


def _unheard(progress: Progress) -> None:
    """Whoever uploads sees the progress at the other end of the stream."""
