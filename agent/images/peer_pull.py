"""Puts an image together from peers that have it: several at once, each chunk checked, whoever fails is left out.

What one peer was asked for and did not send another one is asked for. When all are gone, what came stays for the next
attempt, from whomever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import structlog
import trio
import zstandard

from ...protocols.blob import LENGTH, MAX_BATCH, MAX_CHUNKS, BlobAnswer, BlobRequest, BlobWant
from ...protocols.errors import PeerMisbehaved, PeerUnreachable, TwinshareError
from ...protocols.image import Image
from ...protocols.operation import Progress
from ...protocols.tunnel import encode
from ..backoff import Backoff
from ..files import disk_errors_named
from .bulk import FAST, LINES, TRIAL, Batch, NoBulk, OpenBulk, Pace, fetch
from .compression import plain_content
from .index import HEADER, BadIndexError, ChunkIndex, read_header
from .parallel import together
from .partial import Partial
from .peer_serve import PIECE, Reader
from .port import ImportRequest, Report
from .registry.packs import MAX_FRAME, MAX_INDEX, unpack_chunk
from .spooled_file import Bytes, SpooledFile
from .store import DiskImageStore

log = structlog.get_logger(__name__)

SOURCES = 4
"""From how many peers at once."""
DEPTH = 4
"""How many questions are under way with each."""
READ_AHEAD = 2
"""How many answers wait to be written, besides the one that is read and the one that is written."""
TAKEN = 4
"""How many a thread takes at once: the loop may be late."""
PLANNED = 64
"""How many are planned at a time."""
STALL = 30.0
"""Seconds in which a question must be answered."""
ATTEMPTS = 5
INDEX_ATTEMPTS = 3
PAUSE = 1.0
"""Seconds until the second attempt at a peer, doubled each time: together more than an agent needs to start again."""

Answer = tuple[Batch, list[memoryview]]
"""A batch and the frames of its chunks."""


@dataclass(frozen=True, slots=True)
class Source:
    """A peer. `open` asks for a stream of the image; its errors are what the peer says, or that it is out of reach.

    `open_bulk` opens a connection of its own for the chunks beside it; None where there can be none.
    """

    title: str
    open: Callable[[BlobRequest], Awaitable[tuple[BlobAnswer, trio.abc.Stream]]]
    open_bulk: OpenBulk | None = None


async def pull_from_peers(
    store: DiskImageStore, digest: str, sources: Sequence[Source], request: ImportRequest
) -> Image:
    """Fetch the image `digest` as it is requested.

    Raises: PeerUnreachable, PeerMisbehaved and what the peers say, when none of them can send it; InvalidRequest for a
    disk that is too large or for what is no disk; InsufficientResources.
    """
    titles = ", ".join(source.title for source in sources)
    request.report(Progress(message=f"asking {titles}"))
    with disk_errors_named("the index of the image"):
        index = await _index(sources, digest, store.max_size, store.partials)
    request = replace(request, origin=replace(request.origin, source=f"fleet: {titles}"))
    fetch = _PeerPull(index, sources[:SOURCES], request.report)
    return await store.add_chunks(index, fetch, request)


async def _index(sources: Sequence[Source], digest: str, max_size: int, folder: Path) -> ChunkIndex:
    error: TwinshareError = PeerUnreachable("no peer has the image any more")
    backoff = Backoff(PAUSE, 8 * PAUSE, jitter=0.2)
    while True:
        for source in sources:
            try:
                return await _ask_index(source, digest, max_size, folder)
            except TwinshareError as failure:
                log.info("a peer does not tell the index of an image", peer=source.title, why=failure.message)
                error = failure
        pause = backoff.next()
        if not isinstance(error, PeerUnreachable) or backoff.failures >= INDEX_ATTEMPTS:
            raise error
        await trio.sleep(pause)


async def _ask_index(source: Source, digest: str, max_size: int, folder: Path) -> ChunkIndex:
    answer, stream = await source.open(BlobRequest(digest=digest, index=True))
    try:
        if not HEADER.size <= answer.index_size <= MAX_INDEX:
            raise PeerMisbehaved(f"{source.title} has an index of {answer.index_size} bytes")
        data = await _receive_index(Reader(stream), answer.index_size, max_size, folder)
        index = await trio.to_thread.run_sync(_decoded, data)
    except BadIndexError as error:
        raise PeerMisbehaved(f"{source.title} sends a wrong index: {error}") from None
    except trio.TooSlowError:
        raise PeerUnreachable(f"{source.title} does not send the index of the image") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise PeerUnreachable(f"the connection with {source.title} was lost") from None
    finally:
        await trio.aclose_forcefully(stream)
    if index.digest != digest:
        raise PeerMisbehaved(f"{source.title} sends the index of another image")
    return index


async def _receive_index(reader: Reader, left: int, max_size: int, folder: Path) -> Bytes:
    """The index as it comes, of which each part must come within `STALL` seconds."""
    spooled = SpooledFile(folder)
    part = HEADER.size
    while left:
        with trio.fail_after(STALL):
            data = await reader.exactly(part)
        if part == HEADER.size and (size := read_header(data)[0]) > max_size:
            raise PeerMisbehaved(f"the disk of {size} bytes is larger than the {max_size} that this node takes")
        await trio.to_thread.run_sync(spooled.write, data)
        left -= part
        part = min(left, PIECE)
    return await trio.to_thread.run_sync(spooled.finish)


def _decoded(data: Bytes) -> ChunkIndex:
    """Blocking; what is made of all of an index is made here. Raises: BadIndexError."""
    index = ChunkIndex.decode(data)
    _ = index.digest, index.data_size
    return index


class _PeerPull:
    """Fills the gaps of a partial disk. The disk's own lock decides who writes a chunk."""

    def __init__(self, index: ChunkIndex, sources: Sequence[Source], report: Report) -> None:
        self._index, self._report = index, report
        self._left_over: dict[str, Source] = {source.title: source for source in sources}
        self._error: TwinshareError = PeerUnreachable("no peer has the image any more")
        self._broken: OSError | None = None
        self._message = "fetching"
        self._without_bulk = {source.title for source in sources if source.open_bulk is None}

    async def __call__(self, disk: Partial) -> None:
        reused = self._index.data_size - disk.left
        self._message = f"fetching from {', '.join(self._left_over)}"
        if reused:
            self._message += f"; {reused} bytes were here already"
        self._tell(disk)
        batches = _Batches(disk)
        # Again with those that are left: one may have failed when the others had nothing more to do.
        while batches and self._left_over and not self._broken:
            async with trio.open_nursery() as nursery:
                for source in list(self._left_over.values()):
                    nursery.start_soon(self._drain, batches, source, nursery.cancel_scope)
        if self._broken:
            raise self._broken
        if disk.gaps:
            raise self._error

    def _tell(self, disk: Partial, message: str = "") -> None:
        total = self._index.data_size
        self._report(Progress(done=total - disk.left, total=total, unit="bytes", message=message or self._message))

    async def _drain(self, batches: _Batches, source: Source, scope: trio.CancelScope) -> None:
        """Fetch from one peer until nothing is left to fetch, or the peer is no good any more."""
        failures, backoff, disk = 0, Backoff(PAUSE, 8 * PAUSE, jitter=0.2), batches.partial
        while batches and failures < ATTEMPTS:
            before = disk.left
            try:
                await self._take(batches, source)
                if batches:
                    await self._take_bulk(batches, source)
                if not disk.gaps:
                    scope.cancel()  # whoever is out of reach need not be waited for
            except PeerUnreachable as error:
                if disk.left < before:
                    failures = 0
                    backoff.reset()
                failures += 1
                self._error = error
                if failures < ATTEMPTS:
                    self._tell(disk, f"{error.message}; trying again")
                    await trio.sleep(backoff.next())
            except TwinshareError as error:
                self._error = error
                failures = ATTEMPTS
            except OSError as error:
                self._broken = error
                scope.cancel()
        if failures >= ATTEMPTS:
            log.warning("a peer is left out", peer=source.title, why=self._error.message)
            self._left_over.pop(source.title, None)

    async def _take(self, batches: _Batches, source: Source) -> None:
        """Ask and read in one task, and write in another what was read: all there is, or until the line proves fast."""
        request = BlobRequest(digest=self._index.digest)
        asked: deque[Batch] = deque()  # and not written yet
        stream: trio.abc.Stream | None = None
        received, to_write = trio.open_memory_channel[Answer](READ_AHEAD)
        try:
            _, stream = await source.open(request)
            asking = partial(self._ask, batches, source, stream, asked, received)
            await together(asking, partial(self._write_all, batches.partial, source, asked, to_write))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerUnreachable(f"the connection with {source.title} was lost") from None
        finally:
            batches.give_back(asked)
            if stream is not None:
                await trio.aclose_forcefully(stream)

    async def _ask(
        self,
        batches: _Batches,
        source: Source,
        stream: trio.abc.Stream,
        asked: deque[Batch],
        received: trio.MemorySendChannel[Answer],
    ) -> None:
        reader = Reader(stream)
        under_way: deque[Batch] = deque()
        pace = Pace(FAST)
        async with received:
            while True:
                ends = pace.fast and source.title not in self._without_bulk and batches.partial.left >= TRIAL
                while len(under_way) < DEPTH and not ends and (batch := await batches.take()):
                    asked.append(batch)
                    under_way.append(batch)
                    await stream.send_all(encode(BlobWant(chunks=batch)))
                if not under_way:
                    return
                frames = await self._receive(reader, under_way[0], source)
                pace.add(sum(map(len, frames)))
                await received.send((under_way.popleft(), frames))

    async def _write_all(
        self,
        disk: Partial,
        source: Source,
        asked: deque[Batch],
        to_write: trio.MemoryReceiveChannel[Answer],
    ) -> None:
        async for batch, frames in to_write:
            try:
                await trio.to_thread.run_sync(self._write, disk, batch, frames)
            except BadIndexError as error:
                raise PeerMisbehaved(f"{source.title} sends a damaged image: {error}") from None
            asked.popleft()
            self._tell(disk)

    async def _receive(self, reader: Reader, batch: Batch, source: Source) -> list[memoryview]:
        frames: list[memoryview] = []
        with trio.move_on_after(STALL):
            for _ in batch:
                (length,) = LENGTH.unpack(await reader.exactly(LENGTH.size))
                if not 0 < length <= MAX_FRAME:
                    raise PeerMisbehaved(f"{source.title} cannot read a part of the image")
                frames.append(await reader.exactly(length))
        if len(frames) < len(batch):
            raise PeerUnreachable(f"{source.title} sent nothing for {STALL:g} s")
        return frames

    async def _take_bulk(self, batches: _Batches, source: Source) -> None:
        """Ask over connections of their own, for as long as they are fast; over none that the peer does not give."""
        if source.title not in self._without_bulk:
            await together(*[partial(self._take_on_line, batches, source)] * LINES)

    async def _take_on_line(self, batches: _Batches, source: Source) -> None:
        asked: deque[Batch] = deque()  # and not written yet
        taken: deque[Batch] = deque()  # and not asked for yet
        if source.open_bulk is None:
            return

        def keep(batch: Batch, frames: list[memoryview]) -> None:
            try:
                self._write(batches.partial, batch, frames)
            except BadIndexError as error:
                raise PeerMisbehaved(f"{source.title} sends a damaged image: {error}") from None
            asked.popleft()

        async def more() -> list[Batch]:
            self._tell(batches.partial)
            return [batch for _ in range(TAKEN) if (batch := await batches.take())]

        def take() -> Batch | None:
            if not taken:
                taken.extend(trio.from_thread.run(more))
                asked.extend(taken)
            return taken.popleft() if taken else None

        try:
            async with source.open_bulk(BlobRequest(digest=self._index.digest)) as line:
                if not await line.run(partial(fetch, take=take, keep=keep, within=STALL)):
                    self._without_bulk.add(source.title)
        except NoBulk as error:
            log.debug("no connection for bulk", peer=source.title, why=str(error))
            self._without_bulk.add(source.title)
        finally:
            batches.give_back(asked)
        self._tell(batches.partial)

    def _write(self, disk: Partial, batch: Batch, frames: Sequence[memoryview]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        wanted = [self._index.chunk(place) for place in batch]
        disk.fill([
            (digest, plain_content(frame) or unpack_chunk(decompressor, frame, length))
            for (_, length, digest), frame in zip(wanted, frames, strict=True)
        ])  # fmt: skip


class _Batches:
    """What is to be asked for: planned some at a time, and what a peer did not send."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self._plan = _plan(partial)
        self._planned = False
        self._ready: deque[Batch] = deque()
        self._planning = trio.Lock()

    def __bool__(self) -> bool:
        return bool(self._ready) or not self._planned

    async def take(self) -> Batch | None:
        """The next batch; None when there is none now."""
        async with self._planning:
            if not self._ready and not self._planned:
                self._ready.extend(await trio.to_thread.run_sync(lambda: list(islice(self._plan, PLANNED))))
                self._planned = not self._ready
        return self._ready.popleft() if self._ready else None

    def give_back(self, batches: Iterable[Batch]) -> None:
        """These were not sent."""
        self._ready.extendleft(batches)


def _plan(partial: Partial) -> Iterator[Batch]:
    """The missing chunks in the order of the disk, in lots that may be asked for at once; each is asked for once."""
    batch: Batch = []
    size = 0
    for place, (_, length, _) in partial.gaps.wanted():
        if batch and (size + length > MAX_BATCH or len(batch) == MAX_CHUNKS):
            yield batch
            batch, size = [], 0
        batch.append(place)
        size += length
    if batch:
        yield batch
