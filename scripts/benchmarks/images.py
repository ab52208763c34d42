"""Images: chunking, packing, pulling and resuming against the tools that do less, all with the same disk in one run."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from blake3 import blake3

from scripts.benchmarks._disks import Disks, make_disks
from scripts.benchmarks.rows import Row
from tests.images.registry.servers import Settings, docker_registry
from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import quiet
from twinshare.agent.images.index import index_file
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.registry.client import RegistryClient, Repository, open_registry_client
from twinshare.agent.images.registry.manifest import Descriptor, Manifest
from twinshare.agent.images.registry.packs import Packer
from twinshare.agent.images.registry.pull import pull_chunks
from twinshare.agent.images.registry.push import push_image
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.image import Image
from twinshare.protocols.operation import Progress
from twinshare.protocols.reference import parse_reference

ROUNDS = 3
# Of each way, one after the other: the best of both counts, for others use the machine too.
PULLS = 5
OVERLAYS = 50
MEGABYTE = 1e6
MIB = 1 << 20


async def measure() -> list[Row]:
    """Needs docker-registry, curl, zstd and e2fsprogs; 5 GB in the temporary folder."""
    place = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - on a disk, which /tmp may not be
    with tempfile.TemporaryDirectory(prefix="twinshare-bench-", dir=place) as name:
        folder = Path(name)
        disks = await trio.to_thread.run_sync(make_disks, folder)
        rows = await trio.to_thread.run_sync(_chunk_and_pack, disks.first, folder)
        async with docker_registry(folder / "registry") as registry:
            sizes = await _publish(folder / "publisher", disks, registry)
            rows += await _pulls(folder, disks, registry, sizes)
            rows += await _overlays(folder, disks)
    return rows


def _chunk_and_pack(disk: Path, folder: Path) -> list[Row]:
    """On one core, like the baseline."""
    fd = os.open(disk, os.O_RDONLY)
    scratch = (folder / "pack").open("w+b")

    def new_file() -> int:
        scratch.truncate(0)
        return scratch.fileno()

    ours, theirs, indexing = [], [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        index = index_file(fd, os.fstat(fd).st_size)
        indexing.append(time.perf_counter() - begun)
        for _pack in Packer(fd, index, new_file).packs():
            pass
        ours.append(time.perf_counter() - begun)
        (folder / "data").write_bytes(b"")
        with (folder / "data").open("wb") as data:
            for offset, length, _ in index:
                data.write(os.pread(fd, length, offset))
        begun = time.perf_counter()
        subprocess.run(["zstd", "-q", "-3", "-f", "--single-thread", folder / "data", "-o", folder / "z"], check=True)
        theirs.append(time.perf_counter() - begun)
    os.close(fd)
    scratch.close()
    for leftover in ("pack", "data", "z"):
        (folder / leftover).unlink()
    megabytes = index.data_size / MEGABYTE
    return [
        Row(name="index and pack", value=min(ours) / megabytes * 1e3, unit="ms/MB",
            baseline=min(theirs) / megabytes * 1e3, limit=1 / 0.6,
            note=f"baseline: zstd -3 on one core; {megabytes / min(ours):.0f} MB/s"),
        Row(name="index alone", value=min(indexing) / megabytes * 1e3, unit="ms/MB",
            note=f"{megabytes / min(indexing):.0f} MB/s of {megabytes:.0f} MB"),
    ]  # fmt: skip


class Counting(RegistryClient):
    """Counts the bytes of blobs that are asked for."""

    fetched = 0

    def range(self, repository: Repository, blob: Descriptor, start: int, end: int) -> AsyncGenerator[bytes, None]:
        self.fetched += end - start
        return super().range(repository, blob, start, end)


@asynccontextmanager
async def _node(folder: Path, registry: Settings) -> AsyncIterator[tuple[DiskImageStore, Counting]]:
    async with disk_store(folder) as store, open_registry_client([registry]) as client:
        yield store, Counting(client.web)


async def _publish(folder: Path, disks: Disks, registry: Settings) -> dict[str, int]:
    """Push the three disks; the bytes of each one's packs."""
    sizes = {}
    async with _node(folder, registry) as (store, client):
        for tag, disk in (("first", disks.first), ("changed", disks.changed), ("rebuilt", disks.rebuilt)):
            image = await store.add_image(tag, _read(disk), report=quiet)
            target = parse_reference(f"{registry.host}/bench:{tag}")
            await push_image(store, client, image, target, quiet)
            found = await client.manifest(Repository(registry.host, "bench"), tag)
            sizes[tag] = sum(layer.size for layer in found.manifest.layers)
    await trio.to_thread.run_sync(shutil.rmtree, folder)
    return sizes


async def _read(disk: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(disk, "rb") as file:
        while data := await file.read(1 << 20):
            yield data


async def _pull(
    store: DiskImageStore,
    client: RegistryClient,
    registry: Settings,
    tag: str,
    report: Callable[[Progress], None] = quiet,
) -> Image:
    repository = Repository(registry.host, "bench")
    found = await client.manifest(repository, tag)
    name = parse_reference(f"{registry.host}/bench:{tag}")
    return await pull_chunks(store, client, repository, found, ImportRequest(name, Origin(tag), report))


async def _pulls(folder: Path, disks: Disks, registry: Settings, sizes: dict[str, int]) -> list[Row]:
    ours, theirs = [], []
    async with _node(folder / "asks", registry) as (_, client):
        manifest = (await client.manifest(Repository(registry.host, "bench"), "first")).manifest
    for _ in range(PULLS):
        theirs.append(await _spent(lambda: _curl(folder, registry, manifest)))
        await trio.to_thread.run_sync(shutil.rmtree, folder / "puller", True)
        async with _node(folder / "puller", registry) as (store, client):
            ours.append(await _spent(partial(_pull, store, client, registry, "first")))
    (wall, cpu), (their_wall, their_cpu) = (
        [min(column) for column in zip(*way, strict=True)] for way in (ours, theirs)
    )
    rows = [
        Row(name="full pull", value=wall, unit="s", baseline=their_wall, limit=1.3,
            note="baseline: curl of all packs | zstd -d, neither verified nor sparse nor synced"),
        Row(name="full pull, CPU", value=cpu, unit="s", baseline=their_cpu, note="user and system time"),
    ]  # fmt: skip
    async with _node(folder / "puller", registry) as (store, client):
        for tag, disk, limit in (("changed", disks.changed, 0.08), ("rebuilt", disks.rebuilt, 0.20)):
            client.fetched = 0
            begun = time.perf_counter()
            image = await _pull(store, client, registry, tag)
            taken = time.perf_counter() - begun
            same = await trio.run_process(["cmp", "-s", store.base_path(image.digest), disk], check=False)
            if same.returncode:
                raise AssertionError(f"the pulled disk is not the {tag} one")
            rows.append(
                Row(name=f"delta pull, {tag}", value=client.fetched / MEGABYTE, unit="MB",
                    baseline=sizes[tag] / MEGABYTE, limit=limit, note=f"baseline: its packs; {taken:.1f} s")
            )  # fmt: skip
            await store.remove_image(image.digest, used_by=lambda _: [])
    await trio.to_thread.run_sync(shutil.rmtree, folder / "puller")
    return rows + await _resume(folder, registry, sizes["first"])


async def _spent(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds on the clock, and of CPU in this process and the ones it waited for."""
    begun = sum(_cpu())
    taken = await _timed(work)
    return taken, sum(_cpu()) - begun


def _cpu() -> Iterator[float]:
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        yield used.ru_utime + used.ru_stime


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


async def _curl(folder: Path, registry: Settings, manifest: Manifest) -> None:
    """What a shell can do: the packs one after another through zstd."""
    urls = [f"http://{registry.host}/v2/bench/blobs/{layer.digest}" for layer in manifest.layers[1:]]
    line = f"curl -sfS {' '.join(urls)} | zstd -q -d -f -o {folder / 'curled'}"
    await trio.run_process(["bash", "-o", "pipefail", "-c", line])
    await trio.to_thread.run_sync((folder / "curled").unlink)


async def _resume(folder: Path, registry: Settings, size: int) -> list[Row]:
    """Kill a pulling process half way; what the next one does before it fetches, and what it fetches twice."""
    before = await trio.to_thread.run_sync(_killed_half_way, folder / "resumed", registry.host)
    (left,) = (folder / "resumed" / "partial").iterdir()
    there = left.stat().st_blocks * 512
    reading = await trio.to_thread.run_sync(_seconds_to_hash, left)
    fresh, _ = await _until_it_fetches(folder / "fresh", registry)
    resumed, again = await _until_it_fetches(folder / "resumed", registry)
    return [
        Row(name="resume after kill -9", value=max(0.0, resumed - fresh) / (there / 1e9), unit="s/GB",
            baseline=reading / (there / 1e9), limit=4.0,
            note=f"beyond a first pull's {fresh:.2f} s; baseline: BLAKE3 of the {there / MEGABYTE:.0f} MB there"),
        Row(name="asked for twice", value=max(0, before + again - size) / MEGABYTE, unit="MB",
            note="what was on its way when the process was killed"),
    ]  # fmt: skip


def _seconds_to_hash(file: Path) -> float:
    """Read and hash what lies between the holes of a file, on one core (blocking)."""
    begun, hashed, at = time.perf_counter(), blake3(), 0
    with file.open("rb") as data, contextlib.suppress(OSError):  # the last SEEK_DATA fails: no data follows
        while True:
            at = os.lseek(data.fileno(), at, os.SEEK_DATA)
            end = os.lseek(data.fileno(), at, os.SEEK_HOLE)
            while at < end:
                hashed.update(os.pread(data.fileno(), min(MIB, end - at), at))
                at = min(at + MIB, end)
    return time.perf_counter() - begun


async def _until_it_fetches(folder: Path, registry: Settings) -> tuple[float, int]:
    """A whole pull: the seconds before its first request for data, and the bytes it asked for."""
    first: list[float] = []
    begun = time.perf_counter()

    def report(progress: Progress) -> None:
        if progress.message.startswith("fetching") and not first:
            first.append(time.perf_counter() - begun)

    async with _node(folder, registry) as (store, client):
        await _pull(store, client, registry, "first", report)
        fetched = client.fetched
    await trio.to_thread.run_sync(shutil.rmtree, folder)
    return first[0], fetched


def _killed_half_way(folder: Path, host: str) -> int:
    """How many bytes the process had asked for when half of the disk was there. Blocking."""
    argv = [sys.executable, "-m", "scripts.benchmarks.images", str(folder), host]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline() if process.stdout else b""
        process.send_signal(signal.SIGKILL)
    return int(line)


async def _pull_until_half(folder: Path, host: str) -> None:
    """The process that is killed: says how much it asked for when half is there, and goes on."""
    async with _node(folder, Settings(host)) as (store, client):

        def report(progress: Progress) -> None:
            if progress.total and progress.done * 2 > progress.total:
                print(client.fetched, flush=True)

        await _pull(store, client, Settings(host), "first", report)


async def _overlays(folder: Path, disks: Disks) -> list[Row]:
    async with disk_store(folder / "runner") as store:
        image = await store.add_image("base", _read(disks.first), report=quiet)
        (folder / "overlays").mkdir()
        ours, theirs = [], []
        for number in range(OVERLAYS):
            path = folder / "overlays" / f"{number}.qcow2"
            ours.append(await _timed(partial(store.make_overlay, image.digest, path, 10 << 30)))
            begun = time.perf_counter()
            await trio.to_thread.run_sync(_overlay_by_qemu_img, disks.first, path.with_suffix(".theirs"))
            theirs.append(time.perf_counter() - begun)
    worst = int(OVERLAYS * 0.95)
    return [
        Row(name="disk of a new VM", value=sorted(ours)[worst] * 1e3, unit="ms", baseline=sorted(theirs)[worst] * 1e3,
            limit=1.0, note="95th percentile; baseline: qemu-img create, then sync"),
    ]  # fmt: skip


def _overlay_by_qemu_img(base: Path, path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path, "10G"], check=True)
    for synced in (path, path.parent):
        fd = os.open(synced, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


if __name__ == "__main__":
    trio.run(_pull_until_half, Path(sys.argv[1]), sys.argv[2])
