"""Fetches our own artifact: the index first, then of the packs only the frames whose chunks are not here yet."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import trio
import zstandard

from ....protocols.errors import RegistryFailed
from ....protocols.image import Image
from ....protocols.operation import Progress
from ...files import disk_errors_named
from ..index import BadIndexError
from ..parallel import each
from ..partial import Partial
from ..port import ImportRequest, Report
from ..spooled_file import Bytes, SpooledFile
from ..store import DiskImageStore
from .blob_cache import lots
from .client import Found, RegistryClient, Repository
from .manifest import Descriptor, twinshare_layers
from .packs import MAX_INDEX, Layout, decode_layout, unpack_chunk
from .ranges import Run, plan_runs

AT_ONCE = 4
# More of them would wait for each other at the interpreter's lock.
WRITERS = 3
# Frames are unpacked and written in lots of about this size: little is lost when the agent is killed.
LOT = 512 * 1024


async def pull_chunks(
    store: DiskImageStore,
    client: RegistryClient,
    repository: Repository,
    found: Found,
    request: ImportRequest,
) -> Image:
    """Raises: RegistryFailed, ImageNotFound, InsufficientResources."""
    index_layer, packs = twinshare_layers(found.manifest)
    sizes = [pack.size for pack in packs]
    try:
        with disk_errors_named("the index of the image"):
            data = await _fetch_spooled(client, repository, index_layer, store.partials)
            layout = await trio.to_thread.run_sync(decode_layout, data, sizes, store.max_size, store.partials)
    except BadIndexError as error:
        raise RegistryFailed(f"the image's index at {repository.host} is wrong: {error}") from None
    fetch = _Fetch(client, repository, packs, layout, request.report)
    return await store.add_chunks(layout.index, fetch, request)


async def _fetch_spooled(client: RegistryClient, repository: Repository, blob: Descriptor, folder: Path) -> Bytes:
    if blob.size > MAX_INDEX:
        raise RegistryFailed(f"the image has an index of {blob.size} bytes where at most {MAX_INDEX} are expected")
    spooled = SpooledFile(folder)
    async with aclosing(client.read(repository, blob)) as parts, aclosing(lots(parts)) as joined:
        async for lot in joined:
            await trio.to_thread.run_sync(spooled.write, lot)
    return await trio.to_thread.run_sync(spooled.finish)


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
        self._writing = trio.CapacityLimiter(WRITERS)

    async def __call__(self, partial: Partial) -> None:
        total = self._layout.index.data_size
        reused = total - partial.left
        message = f"fetching; {reused} bytes were here already" if reused else "fetching"

        def tell() -> None:
            self._report(Progress(done=total - partial.left, total=total, unit="bytes", message=message))

        async def work(run: Run) -> None:
            await self._fetch_run(partial, run, tell)

        tell()
        async with aclosing(_in_thread(plan_runs(self._layout, partial.gaps))) as runs:
            await each(runs, work, at_once=AT_ONCE)

    async def _fetch_run(self, partial: Partial, run: Run, tell: Callable[[], None]) -> None:
        """Ask for the run's bytes, and write its chunks as they come. `tell` is called after each lot."""
        unpacking = _Unpacking(partial, run, self._repository.host)
        parts: list[bytes] = []
        gathered = 0
        async with aclosing(self._client.range(self._repository, self._packs[run.pack], run.start, run.end)) as found:
            async for data in found:
                parts.append(data)
                gathered += len(data)
                if gathered >= LOT:
                    await trio.to_thread.run_sync(unpacking.take, parts, limiter=self._writing)
                    parts, gathered = [], 0
                    tell()
        await trio.to_thread.run_sync(unpacking.take, parts, limiter=self._writing)
        tell()


async def _in_thread(runs: Iterator[Run]) -> AsyncGenerator[Run, None]:
    while (run := await trio.to_thread.run_sync(next, runs, None)) is not None:
        yield run


class _Unpacking:
    """Takes the bytes of a run as they come, and writes the chunk of every frame that is whole. Blocking."""

    def __init__(self, partial: Partial, run: Run, host: str) -> None:
        self._partial = partial
        self._host = host
        self._frames = deque(run.frames)
        self._rest = b""
        self._position = run.start  # of `_rest` in the pack
        self._decompressor = zstandard.ZstdDecompressor()

    def take(self, parts: Sequence[bytes]) -> None:
        """Raises: RegistryFailed for bytes that are not what they should be, OSError."""
        data = memoryview(b"".join([self._rest, *parts]))
        end = self._position + len(data)
        chunks: list[tuple[bytes, bytes | memoryview]] = []
        try:
            while self._frames and self._frames[0].offset + self._frames[0].length <= end:
                frame = self._frames.popleft()
                start = frame.offset - self._position
                packed = data[start : start + frame.length]
                chunks.append((frame.digest, unpack_chunk(self._decompressor, packed, frame.chunk_length)))
            self._partial.fill(chunks)
        except BadIndexError as error:
            raise RegistryFailed(f"{self._host} sends a damaged image: {error}") from None
        keep = min(self._frames[0].offset if self._frames else end, end)
        self._rest, self._position = bytes(data[keep - self._position :]), keep
