"""Memory does not grow with an image: two sizes, one peak, for each way in and out."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from tests.images.registry.servers import docker_registry, needs_registry, no_pause
from tests.images.stores import disk_store
from twinshare.agent.images import spooled_file
from twinshare.agent.images.contract_samples import quiet, with_boot_sector
from twinshare.agent.images.peer_pull import Source, pull_from_peers
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.registry import packs, pull, ranges
from twinshare.agent.images.registry.client import Repository, open_registry_client
from twinshare.agent.images.registry.pull import pull_chunks
from twinshare.agent.images.registry.push import push_image
from twinshare.agent.images.store import DiskImageStore
from twinshare.agent.reach.fleet_images import BlobServer
from twinshare.agent.reach.tunnel import receive_frame
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.blob import BlobAnswer, BlobRequest
from twinshare.protocols.image import Image
from twinshare.protocols.reference import parse_reference
from twinshare.protocols.tunnel import encode

BLOCK = 4096
FEW, MANY = 2000, 8000
"""So many chunks: what was kept in memory of each took some 500 bytes."""
ROOM = 1 << 20

Way = Callable[[DiskImageStore, DiskImageStore, Image], Awaitable[None]]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is at work at a time is small, so that a small image is above it."""
    for module, name, value in (
        (spooled_file, "IN_MEMORY", 64 << 10),
        (spooled_file, "STEP", 64 << 10),
        (packs, "PACK_SIZE", 1 << 20),
        (ranges, "MAX_RUN", 256 << 10),
        (ranges, "AT_A_TIME", 256),
        (pull, "LOT", 64 << 10),
    ):
        monkeypatch.setattr(module, name, value)


async def many_chunks(count: int) -> AsyncIterator[bytes]:
    """A disk of single blocks between blocks of zeros: each is a chunk."""
    source = random.Random(count)
    yield with_boot_sector(source.randbytes(BLOCK)) + bytes(BLOCK)
    for _ in range(count // 50):
        yield b"".join(source.randbytes(BLOCK) + bytes(BLOCK) for _ in range(50))


class Wire(trio.abc.Stream):
    """A stream as a peer's is, with what is used of it here."""

    def __init__(self, end: trio.socket.SocketType) -> None:
        self._end = trio.SocketStream(end)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._end.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._end.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._end.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._end.aclose()

    def reset(self) -> None:
        self._end.socket.close()


def no_sockets(_peer: str, _ticket: str) -> NoReturn:
    raise AssertionError("no connection of its own was asked for")


async def from_a_peer(here: DiskImageStore, there: DiskImageStore, image: Image) -> None:
    server = BlobServer(here, no_sockets)

    async def serve(far: Wire) -> None:
        async with far:
            await server.serve(LOCAL_ADMIN, far)  # type: ignore[arg-type]  # enough of a stream

    async def ask(request: BlobRequest) -> tuple[BlobAnswer, trio.abc.Stream]:
        near, far = (Wire(end) for end in trio.socket.socketpair())
        nursery.start_soon(serve, far)
        await near.send_all(encode(request))
        return await receive_frame(near, BlobAnswer), near  # type: ignore[arg-type]  # enough of a stream

    request = ImportRequest(parse_reference("copy"), Origin("test"), quiet)
    async with trio.open_nursery() as nursery:
        got = await pull_from_peers(there, image.digest, [Source("the peer", ask)], request)
    assert got.digest == image.digest


async def by_a_registry(here: DiskImageStore, there: DiskImageStore, image: Image) -> None:
    async with (
        docker_registry(here.repository.root / "registry") as settings,
        open_registry_client([settings], sleep=no_pause) as client,
    ):
        target = parse_reference(f"{settings.host}/org/many:v1")
        await push_image(here, client, image, target, quiet)
        repository = Repository.of(target.registry, target.name)
        found = await client.manifest(repository, target.tag)
        request = ImportRequest(target, Origin("test", found.digest), quiet)
        assert (await pull_chunks(there, client, repository, found, request)).digest == image.digest


@contextmanager
def peak_of() -> Iterator[list[int]]:
    """The most memory in bytes that was held above what was there before."""
    found: list[int] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield found
        found.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


@asynccontextmanager
async def stores(folder: Path) -> AsyncIterator[tuple[DiskImageStore, DiskImageStore]]:
    async with disk_store(folder / "here") as here, disk_store(folder / "there") as there:
        yield here, there


@pytest.mark.parametrize("way", [from_a_peer, pytest.param(by_a_registry, marks=needs_registry)])
async def test_an_image_of_many_chunks_takes_no_more_memory(tmp_path: Path, way: Way) -> None:
    peaks: dict[int, int] = {}
    for count in (200, FEW, MANY):  # the first time things are loaded
        async with stores(tmp_path / str(count)) as (here, there):
            with peak_of() as peak:
                image = await here.add_image("many", many_chunks(count), report=quiet)
                await way(here, there, image)
            peaks[count] = peak[0]
            assert there.base_path(image.digest).stat().st_size == image.size
    assert peaks[MANY] < peaks[FEW] + ROOM, peaks
