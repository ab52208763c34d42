"""Send an image to a registry."""

from __future__ import annotations

from ...protocols.image import Pushed, PushRequest
from ...protocols.image_service import ImageService
from ..images.port import Requester
from ..journal.active import ActiveOperation
from .context import ImageOperation


class PushImage(ImageOperation):
    method = ImageService.push_image

    async def do(self, active: ActiveOperation) -> Pushed:
        asked: PushRequest = active.request.request
        return await self.services.exchange.push_image(
            asked.image,
            asked.target,
            report=active.report,
            dry_run=asked.dry_run,
            requester=Requester(active.caller, asked.credentials),
        )
