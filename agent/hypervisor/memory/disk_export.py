"""Exports a domain's disk: nobody writes to the file, so `qemu-nbd` serves it as it is."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from ....protocols.errors import Unsupported
from ...background import open_background
from ...environment import tool_environment
from ..port import ExportedDisk

EXPORT = "vda"
_READY_TIMEOUT = 10.0
_POLL_INTERVAL = 0.005


@asynccontextmanager
async def serve_disk(disk: Path) -> AsyncIterator[ExportedDisk]:
    """Serve `disk` on a socket in a folder of its own: the paths of tests are too long for one.

    Raises: Unsupported where there is no qemu-nbd, or it cannot read the disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "export.sock"
        argv = [
            "qemu-nbd",
            "--read-only",
            "--persistent",
            "-e",
            "8",
            "-k",
            str(socket),
            "-f",
            "qcow2",
            "-x",
            EXPORT,
            str(disk),
        ]
        async with open_background() as nursery:
            await _begin(nursery, argv, socket)
            yield ExportedDisk(socket=socket, export=EXPORT)


async def _begin(nursery: trio.Nursery, argv: list[str], socket: Path) -> None:
    start = partial(trio.run_process, argv, capture_stderr=True, check=False, env=tool_environment())
    try:
        process: trio.Process = await nursery.start(start)
    except OSError:
        raise Unsupported("the hypervisor in memory needs qemu-nbd to export a disk") from None
    for _ in range(int(_READY_TIMEOUT / _POLL_INTERVAL)):
        # It listens before it opens the disk: only its greeting says that it serves it.
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_unix_socket(str(socket)) as probe:
                if await probe.receive_some(8):
                    return
        if process.poll() is not None:
            break
        await trio.sleep(_POLL_INTERVAL)
    raise Unsupported("the hypervisor in memory cannot export this disk")
