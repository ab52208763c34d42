"""Build `tiny:latest`, a guest of a few MB, from the distribution's packages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from ...protocols.image import Image
from ...protocols.services import ImageService
from ..images.tiny.build import REF, build_tiny
from ..journal.active import ActiveOperation
from .context import ImageOperation

CHUNK = 1 << 20


class BuildTiny(ImageOperation):
    method = ImageService.build_tiny

    def target(self, request: Any) -> str:
        return REF

    async def do(self, active: ActiveOperation) -> Image:
        disk = await build_tiny(self.services.scratch, active.report)
        return await self.services.add(REF, _read(disk), active.report, source="build-tiny", replace=True)


async def _read(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while data := await file.read(CHUNK):
            yield data
