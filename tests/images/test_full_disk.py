"""A disk that is really full: whatever takes images in or sends them fails with 507 and leaves nothing behind.

Each operation is tried with a little more room, until it succeeds: it fails at all of its writes, one after another.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.images.registry.servers import docker_registry, needs_registry
from tests.images.registry.test_exchange import meda_parts, node, publish
from tests.images.test_store import as_qcow2
from tests.mounts import fill, free, mounted, needs_mounts
from twinshare.agent.images.contract_samples import nobody, pieces, quiet, with_boot_sector
from twinshare.agent.images.exchange import DiskImageExchange
from twinshare.agent.images.port import Origin, Overlay
from twinshare.agent.images.registry import packs
from twinshare.agent.images.registry.client import Repository, open_registry_client
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import InsufficientResources

pytestmark = [
    needs_mounts,
    needs_registry,
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
MIB = 1 << 20
# SQLite's log may grow meanwhile; it is used again.
LOG = 256 * 1024
FIRST = (0, 4096, 32 * 1024, 128 * 1024, 300_000)
STEP = 700_000


def disk(seed: int) -> bytes:
    source = random.Random(seed)
    return with_boot_sector(source.randbytes(3 * MIB) + bytes(2 * MIB) + source.randbytes(100_000)).ljust(
        8 * MIB, b"\0"
    )


@dataclass(frozen=True)
class Prepared:
    """A node whose store lies on a small disk, what is there already, and a registry that has room."""

    small: Path
    roomy: Path
    store: DiskImageStore
    exchange: DiskImageExchange
    registry: str

    def files(self) -> set[Path]:
        """All that is in the store but its list."""
        found = (path for path in (self.small / "node").rglob("*") if path.is_file())
        return {path for path in found if not path.name.startswith("images.db")}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", 48) as place:
        yield place


@asynccontextmanager
async def prepared(small: Path, roomy: Path) -> AsyncIterator[Prepared]:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(roomy / "registry"))
        client = await stack.enter_async_context(open_registry_client([registry]))
        await publish(client, Repository(registry.host, "meda"), *meda_parts(disk(1)))
        other = await stack.enter_async_context(node(roomy / "node", registry))
        await other[0].add_image("disk", pieces(disk(1)), report=quiet)
        await other[1].push_image("disk", f"{registry.host}/ours:latest", report=quiet)
        store, exchange = await stack.enter_async_context(node(small / "node", registry))
        yield Prepared(small, roomy, store, exchange, registry.host)


async def take_in(place: Prepared, content: bytes) -> Any:
    return await place.store.add_image("new", pieces(content), report=quiet)


async def raw(place: Prepared) -> Any:
    return await take_in(place, disk(1))


async def packed(place: Prepared) -> Any:
    return await take_in(place, gzip.compress(disk(1), 1))


async def qcow2(place: Prepared) -> Any:
    return await take_in(place, as_qcow2(disk(1), place.roomy))


async def ours(place: Prepared) -> Any:
    return await place.exchange.pull_image(f"{place.registry}/ours", report=quiet, name="new")


async def meda(place: Prepared) -> Any:
    return await place.exchange.pull_image(f"{place.registry}/meda", report=quiet, name="new")


async def capture(place: Prepared) -> Any:
    """Of an overlay that lies elsewhere, half of it the guest's own."""
    base, overlay = (await place.store.get_image("base")).digest, place.roomy / "disk.qcow2"
    if not overlay.exists():
        await place.store.make_overlay(base, overlay, 8 * MIB)
        argv = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 4M 3M", str(overlay)]
        await trio.run_process(argv, capture_stdout=True)
    return await place.store.add_disk("new", Overlay(overlay, base), 8 * MIB, report=quiet, origin=Origin("a VM"))


async def send(place: Prepared) -> Any:
    return await place.exchange.push_image("base", f"{place.registry}/sent:1", report=quiet)


async def failed(place: Prepared, act: Callable[[Prepared], Awaitable[Any]], leave: int) -> bool:
    """Whether `leave` bytes are too few for it. It must have left nothing then."""
    images, files = await place.store.list_images(), place.files()
    fill(place.small, leave)
    try:
        await act(place)
    except InsufficientResources as error:
        found = error
    else:
        return False
    assert found.status == 507
    assert str(place.small) not in found.message
    assert await place.store.list_images() == images
    assert place.files() == files, leave
    assert free(place.small) >= leave - LOG, leave
    return True


@pytest.mark.parametrize("act", [raw, packed, qcow2, ours, meda, capture, send], ids=lambda act: act.__name__)
async def test_no_room_is_said_and_leaves_nothing(
    small: Path, tmp_path: Path, act: Callable[[Prepared], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_SIZE", MIB)
    result = disk(1) if act is not capture else disk(2)[: 4 * MIB] + b"\7" * 3 * MIB + disk(2)[7 * MIB :]
    async with prepared(small, tmp_path) as place:
        base = await place.store.add_image("base", pieces(disk(2)), report=quiet)
        files = place.files()
        too_little = -1
        for leave in (*FIRST, *range(MIB, 24 * MIB, STEP)):
            if not await failed(place, act, leave):
                break
            too_little = leave
        assert too_little >= FIRST[-1]
        # Its very last writes are what fails between what was too little and what was enough.
        while leave - too_little > 4096:
            (small / "filler").unlink()
            if act is not send:
                new = await place.store.get_image("new")
                assert place.store.base_path(new.digest).read_bytes() == result
                await place.store.remove_image("new", used_by=nobody)
            assert place.files() == files
            while leave - too_little > 4096 and await failed(place, act, (leave + too_little) // 2):
                too_little = (leave + too_little) // 2
            leave = (leave + too_little) // 2
        assert place.store.base_path(base.digest).read_bytes() == disk(2)
