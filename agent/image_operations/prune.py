"""Remove the images of the caller that no VM stands on; an admin's are all."""

from __future__ import annotations

from typing import Any

from ...protocols.access import LOCAL
from ...protocols.events import ImageRemoved
from ...protocols.image import Pruned
from ...protocols.services import ImageService
from ..journal.active import ActiveOperation
from .context import ImageOperation


class PruneImages(ImageOperation):
    method = ImageService.prune_images
    runs_on_full_disk = True

    def target(self, request: Any) -> str:
        return "images"

    async def do(self, active: ActiveOperation) -> Pruned:
        asked, users = active.request, self.services.vms.all_users_of
        removed = await self.services.store.prune_images(
            used_by=users, everything=asked.all, dry_run=asked.dry_run, caller=active.caller
        )
        if not asked.dry_run:
            for image in removed:
                self.services.events.publish(ImageRemoved.of(image), image.owner or LOCAL)
        freed = sum(image.allocated for image in removed)
        return Pruned(images=list(removed), freed=freed, dry_run=asked.dry_run)
