"""The services that operations on images work with."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import trio

from ...protocols.access import LOCAL
from ...protocols.errors import ImageNotFound
from ...protocols.events import ImageAdded
from ...protocols.image import Image
from ...protocols.reference import Reference
from ..events import EventLog
from ..images.port import ImageExchange, ImageStore, Origin, Report
from ..journal.operation import JournalledOperation
from ..vm.context import VmContext


@dataclass(slots=True)
class ImageContext:
    """What the images of a node are kept with, and the VMs that stand on them.

    `capture_locks`: by the VM's id, so that two captures of one VM follow each other.
    """

    store: ImageStore
    exchange: ImageExchange
    events: EventLog
    vms: VmContext
    scratch: Path
    capture_locks: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)

    async def add(
        self, ref: str, content: AsyncIterable[bytes], report: Report, origin: Origin, *, replace: bool = False
    ) -> Image:
        """Add an image to the store and publish that. Raises: what `ImageStore.add_image` raises."""
        image = await self.store.add_image(ref, content, report=report, origin=origin, replace=replace)
        self.events.publish(ImageAdded.of(image), image.owner or LOCAL)
        return image

    async def full_name(self, ref: str) -> str:
        """The name under which the store has the image that `ref` means. Raises: ImageNotFound, InvalidRequest."""
        try:
            await self.store.get_image(ref)
        except ImageNotFound:
            found = await self.exchange.find_image(ref)
            return str(Reference(registry=found.registry, name=found.name, tag=found.tag))
        return ref

    def with_users(self, image: Image) -> Image:
        return msgspec.structs.replace(image, used_by=list(self.vms.users_of(image.digest)))


class ImageOperation(JournalledOperation[ImageContext]):
    """An operation on images."""
