"""Remove the images of the caller that no VM stands on; an admin's are all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...protocols.access import LOCAL
from ...protocols.events import ImageRemoved
from ...protocols.image import Image, Pruned
from ...protocols.image_service import ImageService
from ..journal.active import ActiveOperation
from .context import ImageOperation


class PruneImages(ImageOperation):
    method = ImageService.prune_images
    runs_on_full_disk = True

    def target(self, request: Any) -> str:
        return "images"

    async def do(self, active: ActiveOperation) -> Pruned:
        """Note what is to be removed, then remove it: after a crash what a former life has removed is in the result."""
        dry_run = active.request.dry_run
        if active.step_name != "remove":
            found = await self._prune(active, dry_run=True)
            if dry_run:
                return _pruned(found, dry_run=True)
            await active.step("remove", images=msgspec.to_builtins(found))
        for image in await self._prune(active, dry_run=False):
            self.services.events.publish(ImageRemoved.of(image), image.owner or LOCAL)
        left = {(image.registry, image.name, image.tag) for image in await self.services.store.list_images()}
        noted = msgspec.convert(active.notes["images"], list[Image])
        return _pruned([image for image in noted if (image.registry, image.name, image.tag) not in left])

    async def _prune(self, active: ActiveOperation, *, dry_run: bool) -> Sequence[Image]:
        return await self.services.store.prune_images(
            used_by=self.services.vms.all_users_of,
            everything=active.request.all,
            dry_run=dry_run,
            caller=active.caller,
        )


def _pruned(images: Sequence[Image], *, dry_run: bool = False) -> Pruned:
    return Pruned(images=list(images), freed=sum(image.allocated for image in images), dry_run=dry_run)
