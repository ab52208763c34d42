"""Runs a tool to its end: feeds its input, collects its bounded output, and kills and reaps it on the way out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from ....protocols.errors import TooLarge
from .connection import Process

_CHUNK = 65536
_REAP_TIMEOUT = 5.0  # seconds


class Pipes:
    """Three pipes: `child_ends` for the process, `streams` for the agent."""

    def __init__(self) -> None:
        self.child_ends: tuple[int, ...] = ()
        self._streams: list[trio.lowlevel.FdStream] = []

    async def __aenter__(self) -> Self:
        pairs: list[tuple[int, int]] = []
        try:
            for _ in range(3):
                pairs.append(os.pipe2(os.O_CLOEXEC))  # noqa: PERF401 - those made before one fails are closed
        except OSError:
            for number in chain(*pairs):
                os.close(number)
            raise
        self.child_ends = (pairs[0][0], pairs[1][1], pairs[2][1])
        self._streams = [trio.lowlevel.FdStream(number) for number in (pairs[0][1], pairs[1][0], pairs[2][0])]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_child_ends()
        for stream in self._streams:
            stream.close()

    def close_child_ends(self) -> None:
        for number in self.child_ends:
            os.close(number)
        self.child_ends = ()

    @property
    def streams(self) -> Sequence[trio.lowlevel.FdStream]:
        """The process's standard input, output and error."""
        return self._streams


async def complete(
    process: Process, pipes: Pipes, argv: Sequence[str], data: bytes, limit: int
) -> subprocess.CompletedProcess[bytes]:
    """Wait for the process's end and return its output; on every way out the process is dead and reaped.

    Raises: TooLarge when a stream carries more than `limit` bytes.
    """
    outputs = [bytearray(), bytearray()]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, pipes.streams[0], data)
            for sink, stream in zip(outputs, pipes.streams[1:], strict=True):
                nursery.start_soon(_collect, stream, sink, limit, process)
        code = await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            with trio.move_on_after(_REAP_TIMEOUT, shield=True):
                await process.wait()
        process.close()
    if any(len(sink) > limit for sink in outputs):
        raise TooLarge(f"{Path(argv[0]).name} wrote more than {limit} bytes and was stopped.")
    return subprocess.CompletedProcess(list(argv), code, bytes(outputs[0]), bytes(outputs[1]))


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    try:
        if data:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # it does not read its whole input; its exit code says whether that was right
    finally:
        stream.close()


async def _collect(stream: trio.lowlevel.FdStream, sink: bytearray, limit: int, process: Process) -> None:
    while chunk := await stream.receive_some(_CHUNK):
        sink += chunk
        if len(sink) > limit:
            process.kill()
            return
