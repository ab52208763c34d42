"""Fetches our own artifact: the index first, then of the packs only the frames whose chunks are not here yet."""

from __future__ import annotations

from contextlib import aclosing

import trio
import zstandard

from ....protocols.errors import RegistryFailed
from ....protocols.image import Image
from ....protocols.operation import Progress
from ....protocols.reference import Reference
from ..index import BadIndexError
from ..parallel import each
from ..partial import Partial
from ..port import Report
from ..store import DiskImageStore, Origin
from .client import Found, RegistryClient, Repository
from .manifest import Descriptor, twinshare_layers
from .packs import MAX_INDEX, Layout, decode_layout, unpack_chunk
from .plan import Frame, Run, plan_runs

AT_ONCE = 4
# Frames are unpacked and written in lots of about this size: little is lost when the agent is killed.
LOT = 512 * 1024


async def pull_chunks(
    store: DiskImageStore,
    client: RegistryClient,
    repository: Repository,
    found: Found,
    name: Reference,
    origin: Origin,
    report: Report,
    *,
    replace: bool,
) -> Image:
    """Raises: RegistryFailed, ImageNotFound, ImageExists, InsufficientResources."""
    index_layer, packs = twinshare_layers(found.manifest)
    data = await client.blob(repository, index_layer, MAX_INDEX)
    sizes = [pack.size for pack in packs]
    try:
        layout = await trio.to_thread.run_sync(decode_layout, data, sizes, store.max_size)
    except BadIndexError as error:
        raise RegistryFailed(f"the image's index at {repository.host} is wrong: {error}") from None
    fetch = _Fetch(client, repository, packs, layout, report)
    return await store.add_chunks(name, layout.index, fetch, origin, report=report, replace=replace)


class _Fetch:
    """Fills the gaps of a partial disk from packs."""

    def __init__(
        self, client: RegistryClient, repository: Repository, packs: list[Descriptor], layout: Layout, report: Report
    ) -> None:
        self._client = client
        self._repository = repository
        self._packs = packs
        self._layout = layout
        self._report = report

    async def __call__(self, partial: Partial) -> None:
        total = self._layout.index.data_size
        reused = total - partial.left
        message = f"fetching; {reused} bytes were here already" if reused else "fetching"

        def tell() -> None:
            self._report(Progress(done=total - partial.left, total=total, unit="bytes", message=message))

        async def work(run: Run) -> None:
            await self._fetch_run(partial, run)
            tell()

        tell()
        await each(plan_runs(self._layout, partial.gaps.keys()), work, at_once=AT_ONCE)

    async def _fetch_run(self, partial: Partial, run: Run) -> None:
        """Ask for the run's bytes, and write its chunks as they come."""
        waiting = iter(run.frames)
        frame = next(waiting, None)
        received, position = bytearray(), run.start  # `position` is where `received` begins in the pack
        async with aclosing(self._client.range(self._repository, self._packs[run.pack], run.start, run.end)) as parts:
            async for data in parts:
                received += data
                if len(received) < LOT and position + len(received) < run.end:
                    continue
                lot: list[tuple[Frame, bytes]] = []
                while frame is not None and frame.offset + frame.length <= position + len(received):
                    start = frame.offset - position
                    lot.append((frame, bytes(received[start : start + frame.length])))
                    frame = next(waiting, None)
                used = (frame.offset if frame is not None else run.end) - position
                used = min(used, len(received))
                del received[:used]
                position += used
                await trio.to_thread.run_sync(self._write, partial, lot)

    def _write(self, partial: Partial, lot: list[tuple[Frame, bytes]]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        try:
            for frame, data in lot:
                partial.fill(frame.digest, unpack_chunk(decompressor, data, frame.chunk_length))
        except BadIndexError as error:
            raise RegistryFailed(f"{self._repository.host} sends a damaged image: {error}") from None
