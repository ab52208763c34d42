"""Remove an image's name, and its disk when no other name is left."""

from __future__ import annotations

import msgspec

from ...protocols.access import LOCAL, Caller
from ...protocols.errors import ImageNotFound
from ...protocols.events import ImageRemoved
from ...protocols.image import Image
from ...protocols.image_service import ImageService
from ..journal.active import ActiveOperation
from ..journal.operation import Release, nothing_claimed
from .context import ImageOperation


class RemoveImage(ImageOperation):
    method = ImageService.remove_image
    runs_on_full_disk = True

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        ref = await self.services.full_name(active.request.image)
        image = await self.services.store.get_image(ref)
        caller.require_ownership(image.owner, f"the image '{ref}'")
        active.notes = {"ref": ref, "image": msgspec.to_builtins(image)}
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Image:
        """Remove it. It was there when this was admitted: where it is not, a former life has removed it."""
        users = self.services.vms.all_users_of
        try:
            removed = await self.services.store.remove_image(active.notes["ref"], used_by=users, caller=active.caller)
        except ImageNotFound:
            if "image" not in active.notes:  # begun by the first version
                raise
            removed = msgspec.convert(active.notes["image"], Image)
        self.services.events.publish(ImageRemoved.of(removed), removed.owner or LOCAL)
        return removed
