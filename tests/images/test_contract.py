from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from twinshare.agent.images.contract import check_image_store
from twinshare.agent.images.fake import FakeImageStore
from twinshare.agent.images.port import ImageStore


async def test_the_twin(tmp_path: Path) -> None:
    @asynccontextmanager
    async def open_store() -> AsyncIterator[ImageStore]:
        yield FakeImageStore()

    await check_image_store(open_store, tmp_path)
