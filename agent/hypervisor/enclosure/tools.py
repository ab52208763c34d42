"""Feed a bounded process, hear it out, and never leave it behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from ....protocols.errors import TooLarge
from .line import Process

_CHUNK = 65536
_BURIAL = 5.0


class Pipes:
    """Three pipes: `far_ends` for the process, streams for us."""

    def __init__(self) -> None:
        self.far_ends: tuple[int, ...] = ()
        self._near: list[trio.lowlevel.FdStream] = []

    async def __aenter__(self) -> Self:
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        self.far_ends = (pairs[0][0], pairs[1][1], pairs[2][1])
        self._near = [trio.lowlevel.FdStream(number) for number in (pairs[0][1], pairs[1][0], pairs[2][0])]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_far_ends()
        for stream in self._near:
            stream.close()

    def close_far_ends(self) -> None:
        for number in self.far_ends:
            os.close(number)
        self.far_ends = ()

    @property
    def near(self) -> Sequence[trio.lowlevel.FdStream]:
        """Its standard input, output and error."""
        return self._near


async def complete(
    process: Process, pipes: Pipes, argv: Sequence[str], data: bytes, bound: int
) -> subprocess.CompletedProcess[bytes]:
    """Wait for the end, gathering what it writes; on the way out, however that is, the process is dead and reaped.

    Raises: TooLarge when a stream carries more than `bound` bytes.
    """
    gathered = [bytearray(), bytearray()]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, pipes.near[0], data)
            for sink, stream in zip(gathered, pipes.near[1:], strict=True):
                nursery.start_soon(_gather, stream, sink, bound, process)
        code = await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            with trio.move_on_after(_BURIAL, shield=True):
                await process.wait()
        process.close()
    if any(len(sink) > bound for sink in gathered):
        raise TooLarge(f"{Path(argv[0]).name} wrote more than {bound} bytes and was stopped.")
    return subprocess.CompletedProcess(list(argv), code, bytes(gathered[0]), bytes(gathered[1]))


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    try:
        if data:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # it does not read to the end; its exit code tells whether that was right
    finally:
        stream.close()


async def _gather(stream: trio.lowlevel.FdStream, sink: bytearray, bound: int, process: Process) -> None:
    while chunk := await stream.receive_some(_CHUNK):
        sink += chunk
        if len(sink) > bound:
            process.kill()
            return
