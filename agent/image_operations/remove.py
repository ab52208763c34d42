"""Remove an image's name, and its disk when no other name is left."""

from __future__ import annotations

from ...protocols.access import Caller
from ...protocols.events import ImageRemoved
from ...protocols.image import Image
from ...protocols.services import ImageService
from ..journal.active import ActiveOperation
from ..journal.operation import Release, nothing_claimed
from .context import ImageOperation


class RemoveImage(ImageOperation):
    method = ImageService.remove_image
    runs_on_full_disk = True

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        active.notes = {"ref": await self.services.full_name(active.request.image)}
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Image:
        users = self.services.vms.all_users_of
        removed = await self.services.store.remove_image(active.notes["ref"], used_by=users)
        self.services.events.publish(ImageRemoved.of(removed))
        return removed
