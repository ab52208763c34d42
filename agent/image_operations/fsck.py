"""Check every image's disk against its digest, and repair what is kept beside it."""

from __future__ import annotations

from typing import Any

from ...protocols.image import ImageCheck
from ...protocols.image_service import ImageService
from ..journal.active import ActiveOperation
from .context import ImageOperation


class FsckImages(ImageOperation):
    method = ImageService.fsck_images
    runs_on_full_disk = True

    def target(self, request: Any) -> str:
        return "images"

    async def do(self, active: ActiveOperation) -> ImageCheck:
        return await self.services.store.fsck_images(
            used_by=self.services.vms.users_of, report=active.report, caller=active.caller
        )
