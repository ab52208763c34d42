"""The images of this node, as one caller may use them outside the journal: the reads, and uploads."""

from __future__ import annotations

from collections.abc import AsyncIterable

from ...protocols.access import Caller, Role
from ...protocols.image import CatalogueEntry, Image
from ...protocols.operation import Progress
from ..files import disk_errors_named
from ..images.port import Origin, Requester
from .context import ImageContext


class ImageReads:
    """The reads of `ImageService` for one caller."""

    def __init__(self, images: ImageContext, caller: Caller) -> None:
        self._images, self._caller = images, caller

    async def list_images(self) -> list[Image]:
        return [self._images.with_users(image) for image in await self._images.store.list_images()]

    async def get_image(self, image: str) -> Image:
        return self._images.with_users(await self._images.exchange.find_image(image))

    async def list_catalogue(self) -> list[CatalogueEntry]:
        return list(self._images.exchange.catalogue())


async def import_image(
    images: ImageContext, caller: Caller, ref: str, content: AsyncIterable[bytes], *, raw: bool = False
) -> Image:
    """Add an image from a stream. Not journalled: when this returns it is there whole, or not at all.

    `raw` takes what cannot be recognised as a disk for a raw one.
    Raises: Forbidden, InsufficientResources, Unavailable, and what `ImageStore.add_image` raises.
    """
    caller.require(Role.OPERATOR, "import_image")
    with disk_errors_named("the image"):
        return await images.add(ref, content, _no_report, Origin(requester=Requester(caller), raw=raw))


def _no_report(progress: Progress) -> None:
    """The sender sees the progress of an upload at its own end of the stream."""
