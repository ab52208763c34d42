"""A private libvirtd in a real sandbox, for tests with real guests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox, open_sandbox

needs_libvirt = pytest.mark.skipif(
    shutil.which("libvirtd", path="/usr/sbin:/usr/bin") is None or shutil.which("qemu-system-x86_64") is None,
    reason="needs libvirtd and qemu-system-x86_64",
)


@contextmanager
def data_directory() -> Iterator[Path]:
    """Not below pytest's own folder: that is closed to the sandbox's user."""
    path = Path(tempfile.mkdtemp(prefix="twinshare-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def new_sandbox(kind: str = "plain") -> AsyncIterator[Sandbox]:
    with data_directory() as data_dir:
        async with open_sandbox(data_dir, kind=kind) as sandbox:
            yield sandbox
