"""Fetches the images of others: each part into a temporary file, then all of them as one stream into the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from ....protocols.errors import InsufficientResources, RegistryFailed
from ....protocols.image import Image
from ....protocols.operation import Progress
from ...files import discard, disk_errors_named
from ..parallel import each
from ..port import ImportRequest, Report
from ..store import DiskImageStore
from .blob_cache import Wanted, cache_blob
from .client import Found, RegistryClient, Repository
from .foreign import disk_of_container, joined, placed
from .manifest import Descriptor, Kind, kind_of, lume_layers, meda_layers

AT_ONCE = 4


async def pull_foreign(
    store: DiskImageStore,
    client: RegistryClient,
    repository: Repository,
    found: Found,
    request: ImportRequest,
) -> Image:
    """An image in the form of Meda, Lume or KubeVirt.

    Raises: InvalidRequest for what is no disk, RegistryFailed, InsufficientResources.
    """
    layers, assemble = _read(found, store.max_size)
    if sum(layer.size for layer in layers) > store.max_size:
        raise RegistryFailed(f"the image's parts are larger than the {store.max_size} bytes that this node takes")
    wanted = [Wanted("sha256", layer.digest.partition(":")[2], layer.size, repository.host) for layer in layers]
    streams = [partial(_blob, client, repository, layer) for layer in layers]
    files = await _fetch_all(store, wanted, streams, request.report)
    return await _take_in(store, assemble(files), files, request)


async def pull_url(
    store: DiskImageStore,
    client: RegistryClient,
    url: str,
    digest: tuple[str, str],
    request: ImportRequest,
) -> Image:
    """A disk by https, compressed or not. Raises: as `pull_foreign`."""
    wanted = Wanted(digest[0], digest[1], None, url.split("/")[2])

    def stream(start: int) -> AsyncGenerator[bytes, None]:
        return client.web.stream(url, start, None)

    files = await _fetch_all(store, [wanted], [stream], request.report)
    return await _take_in(store, joined(files), files, request)


def _read(found: Found, max_size: int) -> tuple[list[Descriptor], Callable[[Sequence[Path]], Iterator[bytes]]]:
    """The layers to fetch, and what makes a disk of their files."""
    kind = kind_of(found.manifest)
    if kind is Kind.MEDA:
        return meda_layers(found.manifest), joined
    if kind is Kind.LUME:
        parts = lume_layers(found.manifest)
        offsets = [offset for offset, _ in parts]
        return [part for _, part in parts], lambda files: placed(list(zip(offsets, files, strict=True)), max_size)
    return list(found.manifest.layers), lambda files: disk_of_container(files, max_size)


def _blob(client: RegistryClient, repository: Repository, blob: Descriptor, start: int) -> AsyncGenerator[bytes, None]:
    return client.range(repository, blob, start, blob.size)


async def _fetch_all(
    store: DiskImageStore,
    wanted: Sequence[Wanted],
    streams: Sequence[Callable[[int], AsyncGenerator[bytes, None]]],
    report: Report,
) -> list[Path]:
    """Fetch all parts, several at once; their files in order."""
    sizes = [part.size for part in wanted]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report(Progress(done=done, total=total, unit="bytes", message="fetching"))

    async def work(number: int) -> None:
        await cache_blob(wanted[number], store.partials, streams[number], limit=store.max_size, on_bytes=on_bytes)

    # A part that stands twice in a manifest is fetched once.
    first = {part.path(store.partials): number for number, part in reversed(list(enumerate(wanted)))}
    paths = [part.path(store.partials) for part in wanted]
    with _gone_when_full(paths), disk_errors_named("the image"):
        await each(sorted(first.values()), work, at_once=AT_ONCE)
    return paths


async def _take_in(
    store: DiskImageStore, disk: Iterator[bytes], files: Sequence[Path], request: ImportRequest
) -> Image:
    with _gone_when_full(files):
        image = await store.add_content(_in_thread(disk), request, replace=True)
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(_discard_all, files)
    return image


@contextmanager
def _gone_when_full(files: Sequence[Path]) -> Iterator[None]:
    """A full disk is the one failure after which nothing is kept for the next attempt."""
    try:
        yield
    except InsufficientResources:
        _discard_all(files)
        raise


def _discard_all(files: Sequence[Path]) -> None:
    for file in files:
        discard(file)


async def _in_thread(parts: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What a blocking iterator gives; the files that it reads are closed at the end, which may come early."""
    try:
        while (part := await trio.to_thread.run_sync(next, parts, None)) is not None:
            yield part
    finally:
        if isinstance(parts, Generator):
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(parts.close)
