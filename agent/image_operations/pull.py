"""Fetch an image from the fleet, the catalogue, a registry or an https address."""

from __future__ import annotations

from ...protocols.access import LOCAL
from ...protocols.events import ImageAdded
from ...protocols.image import Image
from ...protocols.image_service import ImageService
from ..journal.active import ActiveOperation
from .context import ImageOperation


class PullImage(ImageOperation):
    method = ImageService.pull_image

    async def do(self, active: ActiveOperation) -> Image:
        image = await self.services.vms.resolver.pull(active.request.request, active.report, active.caller)
        self.services.events.publish(ImageAdded.of(image), image.owner or LOCAL)
        return self.services.with_users(image)
