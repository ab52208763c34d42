"""Build `tiny:latest`, a guest of a few MB, from the distribution's packages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from ...protocols.access import Caller
from ...protocols.errors import ImageNotFound
from ...protocols.image import Image
from ...protocols.image_service import ImageService
from ..images.port import Origin, Requester
from ..images.tiny.build import REF, build_tiny
from ..journal.active import ActiveOperation
from ..journal.operation import Release, nothing_claimed
from .context import ImageOperation

CHUNK = 1 << 20


class BuildTiny(ImageOperation):
    method = ImageService.build_tiny

    def target(self, request: Any) -> str:
        return REF

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        with suppress(ImageNotFound):
            caller.require_ownership((await self.services.store.get_image(REF)).owner, f"the image '{REF}'")
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Image:
        origin = Origin("build-tiny", requester=Requester(active.caller))
        disk = await build_tiny(self.services.scratch, active.report)
        return await self.services.add(REF, _read(disk), active.report, origin, replace=True)


async def _read(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while data := await file.read(CHUNK):
            yield data
