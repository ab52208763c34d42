"""The in-memory store and the real one keep one contract."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.images.stores import disk_store
from twinshare.agent.images.contract import check_image_store
from twinshare.agent.images.memory import MemoryImageStore
from twinshare.agent.images.port import ImageStore


async def test_the_memory_store(tmp_path: Path) -> None:
    @asynccontextmanager
    async def open_store() -> AsyncIterator[ImageStore]:
        yield MemoryImageStore()

    await check_image_store(open_store, tmp_path)


async def test_the_store_on_disk(tmp_path: Path) -> None:
    numbers = itertools.count()

    @asynccontextmanager
    async def open_store() -> AsyncIterator[ImageStore]:
        root = tmp_path / f"images-{next(numbers)}"
        async with disk_store(root) as store:
            yield store
        assert list((root / "partial").iterdir()) == []

    overlays = tmp_path / "overlays"
    overlays.mkdir()
    await check_image_store(open_store, overlays)
