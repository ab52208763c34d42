"""Stores in temporary folders, with qemu-img run as the tests' own user."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from twinshare.agent.images.store import DiskImageStore, open_image_store


async def run_tool(argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(timeout):
        return await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)


def disk_store(root: Path, *, max_size: int = 1 << 40) -> AbstractAsyncContextManager[DiskImageStore]:
    return open_image_store(root, run_tool=run_tool, own=lambda _fd: None, max_size=max_size)
