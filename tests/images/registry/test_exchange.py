"""What a name means when it is pulled, and the images of others: Meda's, Lume's, KubeVirt's, and disks by https."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import lzma
import os
import random
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import zstandard

from tests.images.registry.servers import Exchange, Settings, docker_registry, needs_registry, no_pause, scripted
from tests.images.stores import disk_store
from tests.images.test_store import as_qcow2, random_disk
from twinshare.agent.images.contract_exchange import check_image_exchange
from twinshare.agent.images.contract_samples import pieces, quiet, with_boot_sector
from twinshare.agent.images.exchange import DiskImageExchange, open_image_exchange
from twinshare.agent.images.memory import MemoryImageExchange, MemoryImageStore
from twinshare.agent.images.port import ImageExchange, ImageStore, Requester
from twinshare.agent.images.registry import http_policy as web_module
from twinshare.agent.images.registry import manifest as m
from twinshare.agent.images.registry.client import RegistryClient, Repository, once, open_registry_client
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import (
    AddressRefused,
    Forbidden,
    ImageNotFound,
    InvalidRequest,
    RegistryFailed,
    TwinshareError,
)

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
MIB = 1 << 20
CHUNK = "application/vnd.cirunlabs.meda.base-image-chunk.v1"
LUME = "application/vnd.trycua.lume.disk.v1"
TAR = "application/vnd.oci.image.layer.v1.tar"


@asynccontextmanager
async def node(
    folder: Path, *settings: Settings, catalogues: tuple[Path, ...] = (), default: str = ""
) -> AsyncIterator[tuple[DiskImageStore, DiskImageExchange]]:
    async with (
        disk_store(folder, max_size=256 * MIB) as store,
        open_image_exchange(
            store, registries=settings, catalogues=catalogues, default=default, sleep=no_pause
        ) as exchange,
    ):
        yield store, exchange


async def test_the_memory_adapter_keeps_the_contract() -> None:
    remote: dict[str, bytes] = {}

    @asynccontextmanager
    async def open_exchange() -> AsyncIterator[tuple[ImageStore, ImageExchange]]:
        store = MemoryImageStore()
        yield store, MemoryImageExchange(store, remote)

    await check_image_exchange(open_exchange, "registry.example")


@needs_registry
async def test_real_registries_keep_the_contract(tmp_path: Path) -> None:
    numbers = itertools.count()
    async with docker_registry(tmp_path / "registry") as registry:

        @asynccontextmanager
        async def open_exchange() -> AsyncIterator[tuple[ImageStore, ImageExchange]]:
            async with node(tmp_path / f"node-{next(numbers)}", registry) as pair:
                yield pair

        await check_image_exchange(open_exchange, registry.host)


async def publish(client: RegistryClient, repository: Repository, *parts: tuple[str, bytes, dict[str, str]]) -> None:
    """Write an artifact with these layers (media type, bytes, annotations) under the tag `latest`."""
    layers = []
    for media_type, content, notes in parts:
        await client.put_blob(repository, m.sha256(content), len(content), once(content))
        layers.append(
            m.Descriptor(media_type=media_type, digest=m.sha256(content), size=len(content), annotations=notes)
        )
    config = m.ImageConfig(created="2026-01-01T00:00:00Z").encode()
    await client.put_blob(repository, m.sha256(config), len(config), once(config))
    described = m.Descriptor(media_type=m.CONFIG, digest=m.sha256(config), size=len(config))
    await client.put_manifest(repository, "latest", m.Manifest(config=described, layers=layers))


@asynccontextmanager
async def published(tmp_path: Path, *parts: tuple[str, bytes, dict[str, str]]) -> AsyncIterator[tuple[Any, str]]:
    """A node, and the reference of an artifact with these layers at a registry that it knows."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        client = await stack.enter_async_context(open_registry_client([registry], no_pause))
        await publish(client, Repository(registry.host, "org/other"), *parts)
        pair = await stack.enter_async_context(node(tmp_path / "node", registry))
        yield pair, f"{registry.host}/org/other"


def meda_parts(disk: bytes, size: int = MIB) -> list[tuple[str, bytes, dict[str, str]]]:
    """As Meda cuts a disk, the parts in another order, with the other files that it ships."""
    cuts = [disk[start : start + size] for start in range(0, len(disk), size)]
    parts = [(CHUNK, cut, {m.TITLE: f"base.raw.chunk.{number:03}"}) for number, cut in enumerate(cuts)]
    return [*reversed(parts), ("application/octet-stream", b"#!/bin/sh\n", {m.TITLE: "../../../../tmp/ch-remote"})]


def container_layer(
    content: bytes, name: str = "disk/disk.qcow2", pack: Callable[[bytes], bytes] = gzip.compress
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, data in (("disk", None), ("../../etc/passwd", b"no"), (name, content)):
            info = tarfile.TarInfo(path)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return pack(buffer.getvalue())


def lume_part(number: int, offset: int, content: bytes) -> tuple[str, bytes, dict[str, str]]:
    named = {"org.trycua.lume.part.number": str(number), "org.trycua.lume.part.offset": str(offset)}
    return LUME, gzip.compress(content), named


@needs_registry
async def test_an_image_of_meda(tmp_path: Path) -> None:
    disk = random_disk(1, 5 * MIB)
    async with published(tmp_path, *meda_parts(disk)) as ((store, exchange), ref):
        image = await exchange.pull_image(ref, report=quiet)
        assert store.base_path(image.digest).read_bytes() == disk
        assert list(store.partials.iterdir()) == []
    assert "ch-remote" not in {name for _, _, names in os.walk(tmp_path) for name in names}
    whole = ("application/vnd.cirunlabs.meda.base-image.v1", disk, {m.TITLE: "base.raw"})
    (tmp_path / "whole").mkdir()
    async with published(tmp_path / "whole", whole) as ((store, exchange), ref):
        image = await exchange.pull_image(ref, report=quiet)
        assert store.base_path(image.digest).read_bytes() == disk


@needs_registry
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["disk/disk.qcow2", "./disk/downloaded", "/disk/x.img"])
async def test_a_container_disk(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    disk = random_disk(2)
    layer = container_layer(as_qcow2(disk, tmp_path), name, pack)
    suffix = {gzip.compress: "+gzip", zstandard.compress: "+zstd"}.get(pack, "")
    async with published(tmp_path, (TAR + suffix, layer, {})) as ((store, exchange), ref):
        image = await exchange.pull_image(ref, report=quiet)
        assert store.base_path(image.digest).read_bytes() == disk
        assert list(store.partials.iterdir()) == []


@needs_registry
async def test_an_image_of_lume(tmp_path: Path) -> None:
    disk = random_disk(3, 6 * MIB)
    cuts = [(offset, disk[offset : offset + MIB]) for offset in range(0, len(disk), MIB)]
    parts = [lume_part(n, offset, cut) for n, (offset, cut) in enumerate(cuts, 1) if any(cut) or n == len(cuts)]
    assert len(parts) < len(cuts)
    async with published(tmp_path, *parts) as ((store, exchange), ref):
        image = await exchange.pull_image(ref, report=quiet)
        assert store.base_path(image.digest).read_bytes() == disk


@needs_registry
@pytest.mark.parametrize(
    ("parts", "kind", "why"),
    [
        ([(TAR, container_layer(b"x", "etc/passwd", bytes), {})], InvalidRequest, "no file below disk"),
        ([(TAR, container_layer(b"x", "disk/../etc/passwd", bytes), {})], InvalidRequest, "no file below disk"),
        ([(TAR + "+gzip", b"garbage" * 1000, {})], RegistryFailed, "cannot be read"),
        ([(CHUNK, b"x" * 512, {m.TITLE: "a.chunk.1"})], RegistryFailed, "numbered"),
        ([("application/x-tgz", b"x", {})], InvalidRequest, "not the image"),
        ([lume_part(1, 0, bytes(300 * MIB))], InvalidRequest, "at most"),
        ([lume_part(1, 1 << 50, b"x")], InvalidRequest, "at most"),
        ([(m.INDEX_LAYER, b"garbage", {})], RegistryFailed, "index"),
    ],
)  # fmt: skip
async def test_images_that_lie_are_refused(tmp_path: Path, parts: Any, kind: type[TwinshareError], why: str) -> None:
    async with published(tmp_path, *parts) as ((store, exchange), ref):
        with pytest.raises(kind, match=why):
            await exchange.pull_image(ref, report=quiet)
        assert await store.list_images() == []
        assert not [path for path in store.partials.iterdir() if path.suffix == ".raw"]


@needs_registry
async def test_a_part_that_is_damaged_is_fetched_again(tmp_path: Path) -> None:
    disk = random_disk(4, 4 * MIB)
    async with published(tmp_path, *meda_parts(disk)) as ((store, exchange), ref):
        digest = hashlib.sha256(disk[:MIB]).hexdigest()
        (victim,) = (tmp_path / "registry/store").rglob(f"blobs/sha256/*/{digest}/data")
        good = victim.read_bytes()
        victim.write_bytes(good[:-1] + b"!")
        with pytest.raises(RegistryFailed, match="other bytes"):
            await exchange.pull_image(ref, report=quiet)
        assert await store.list_images() == []
        victim.write_bytes(good)
        image = await exchange.pull_image(ref, report=quiet)
        assert store.base_path(image.digest).read_bytes() == disk


def serve(files: dict[str, bytes], asked: list[tuple[str, int]], cut: int = 1 << 40) -> Callable[[Exchange], Any]:
    """A file server with ranges that breaks off after `cut` bytes of each answer."""

    async def handler(exchange: Exchange) -> None:
        body = files.get(exchange.target)
        if body is None:
            await exchange.answer(404)
            return
        start = int(exchange.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        asked.append((exchange.target, start))
        rest = body[start:]
        ranged = {"content_range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if "range" in exchange.headers else {}
        await exchange.answer(206 if ranged else 200, rest[:cut], content_length=str(len(rest)), **ranged)

    return handler


@asynccontextmanager
async def by_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], **more: Any
) -> AsyncIterator[tuple[DiskImageStore, DiskImageExchange, str, list[tuple[str, int]]]]:
    """A node that takes https://files.example for the scripted server, and what is asked of that."""
    asked: list[tuple[str, int]] = []
    async with scripted(serve(files, asked, **more)) as server:
        send = httpx.AsyncClient.build_request

        def to_server(self: httpx.AsyncClient, method: str, url: Any, **arguments: Any) -> httpx.Request:
            return send(self, method, str(url).replace("https://files.example", f"http://{server.host}"), **arguments)

        monkeypatch.setattr(httpx.AsyncClient, "build_request", to_server)
        catalogue = tmp_path / "mine.toml"
        catalogue.write_text(
            '["small-1"]\nurl = "https://files.example/small.qcow2.xz"\n'
            'sums = "https://files.example/SUMS"\nuser = "me"\n'
            '["small"]\nalias = "small-1"\n'
        )
        async with node(tmp_path / "node", server, catalogues=(catalogue,)) as (store, exchange):
            yield store, exchange, server.host, asked


async def test_a_disk_by_https_with_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = random_disk(5)
    content = as_qcow2(disk, tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    files = {"/x/Some-Disk.qcow2": content}
    async with by_https(tmp_path, monkeypatch, files, cut=700_000) as (store, exchange, _, asked):
        url = "https://files.example/x/Some-Disk.qcow2"
        image = await exchange.pull_image(url, report=quiet, sha256=digest)
        assert (image.name, image.source) == ("some-disk", url)
        assert store.base_path(image.digest).read_bytes() == disk
        starts = [start for _, start in asked]
        assert starts == sorted(set(starts)), "nothing is fetched twice"
        assert len(starts) > 1
        asked.clear()
        again = await exchange.pull_image(url, report=quiet, sha256=digest, name="other:1")
        assert (again.name, again.tag, again.digest) == ("other", "1", image.digest)
        assert asked == [], "what is here is not fetched again"
        with pytest.raises(RegistryFailed, match="other bytes"):
            await exchange.pull_image(url, report=quiet, sha256="0" * 64, name="third")
        with pytest.raises(ImageNotFound):
            await exchange.pull_image("https://files.example/none", report=quiet, sha256=digest[::-1])


async def test_a_name_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = random_disk(6)
    content = lzma.compress(as_qcow2(disk, tmp_path))
    sums = f"{hashlib.sha512(content).hexdigest()}  small.qcow2.xz\n{'0' * 128}  other.qcow2\n"
    files = {"/small.qcow2.xz": content, "/SUMS": sums.encode()}
    async with by_https(tmp_path, monkeypatch, files) as (store, exchange, _, asked):
        assert exchange.knows("small-1")
        assert not exchange.knows("small-2")
        image = await exchange.pull_image("small-1", report=quiet)
        assert (image.registry, image.name, image.tag, image.labels) == ("local", "small-1", "latest", {"user": "me"})
        assert store.base_path(image.digest).read_bytes() == disk
        asked.clear()
        await exchange.pull_image("small-1", report=quiet)
        assert [target for target, _ in asked] == ["/SUMS"], "only the digests are asked for again"
        other = await exchange.pull_image("small:latest", report=quiet)
        assert (other.name, other.tag, other.digest, other.labels) == ("small", "latest", image.digest, {"user": "me"})
        [entry] = [one for one in exchange.catalogue() if one.name == "small"]
        assert (entry.source, entry.user) == ("https://files.example/small.qcow2.xz", "me")
        await store.remove_image("small", used_by=lambda _digest: [])
        newer = random_disk(7)
        files["/small.qcow2.xz"] = lzma.compress(newer)
        files["/SUMS"] = f"{hashlib.sha512(files['/small.qcow2.xz']).hexdigest()} *small.qcow2.xz\n".encode()
        moved = await exchange.pull_image("small-1", report=quiet)
        assert store.base_path(moved.digest).read_bytes() == newer
        assert len(await store.list_images()) == 2
        files["/SUMS"] = b"nothing\n"
        with pytest.raises(RegistryFailed, match="do not name"):
            await exchange.pull_image("small-1", report=quiet)


async def test_a_name_of_another_is_refused_before_the_disk_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"/d.img": random_disk(8)}
    async with by_https(tmp_path, monkeypatch, files) as (store, exchange, _, asked):
        await store.add_image("taken", pieces(random_disk(9)), report=quiet)
        pull = partial(exchange.pull_image, "https://files.example/d.img", report=quiet)
        digest, ann = hashlib.sha256(files["/d.img"]).hexdigest(), Caller(principal="token:ann", role=Role.OPERATOR)
        with pytest.raises(Forbidden, match="'taken:latest' belongs to local"):
            await pull(sha256=digest, name="taken", requester=Requester(ann))
        assert asked == []
        assert (await pull(sha256=digest, name="new", requester=Requester(ann))).owner == ann.principal


async def test_two_pulls_of_one_address_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random_disk(8)
    digest = hashlib.sha256(content).hexdigest()
    async with by_https(tmp_path, monkeypatch, {"/d.img": content}) as (store, exchange, _, asked):

        async def pull(name: str) -> None:
            await exchange.pull_image("https://files.example/d.img", report=quiet, sha256=digest, name=name)

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(pull, name)
        assert len(asked) == 1
        assert {image.name for image in await store.list_images()} == {"a", "b", "c"}


async def test_a_pull_by_https_is_taken_up_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = with_boot_sector(random.Random(9).randbytes(4 * MIB))
    digest = hashlib.sha256(content).hexdigest()
    url = "https://files.example/d.img"
    monkeypatch.setattr(web_module, "ATTEMPTS", 2)
    files = {"/d.img": content}
    async with by_https(tmp_path, monkeypatch, files, cut=0) as (_, exchange, _, _):
        with pytest.raises(RegistryFailed):
            await exchange.pull_image(url, report=quiet, sha256=digest)
    (spooled,) = (tmp_path / "node/partial").iterdir()
    spooled.write_bytes(content[: 3 * MIB])
    async with by_https(tmp_path, monkeypatch, files) as (store, exchange, _, asked):
        image = await exchange.pull_image(url, report=quiet, sha256=digest)
        assert asked == [("/d.img", 3 * MIB)]
        assert store.base_path(image.digest).read_bytes() == content
        assert list(store.partials.iterdir()) == []


async def test_an_endless_disk_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with by_https(tmp_path, monkeypatch, {"/d.img": bytes(257 * MIB)}) as (_, exchange, _, _):
        with pytest.raises(RegistryFailed, match="more than"):
            await exchange.pull_image("https://files.example/d.img", report=quiet, sha256="0" * 64)


@pytest.mark.parametrize(
    ("ref", "sha256", "kind"),
    [
        ("nothing-known", "", ImageNotFound),
        ("blake3:" + "0" * 64, "", ImageNotFound),
        ("../x", "", InvalidRequest),
        ("ghcr.io/a/b", "0" * 64, InvalidRequest),
        ("http://x/y", "0" * 64, InvalidRequest),
        ("https://x/y", "0" * 63, InvalidRequest),
        ("https://x/y", "Z" * 64, InvalidRequest),
        ("https://user:pw@x/y", "0" * 64, InvalidRequest),
        ("https:///y", "0" * 64, InvalidRequest),
        ("https://x/y\n", "0" * 64, InvalidRequest),
        ("https://127.0.0.1/disk", "0" * 64, AddressRefused),
        ("https://[::1]/disk", "0" * 64, AddressRefused),
        ("127.0.0.1:5000/x", "", AddressRefused),
    ],
)
async def test_what_cannot_be_pulled(tmp_path: Path, ref: str, sha256: str, kind: type[TwinshareError]) -> None:
    async with node(tmp_path / "node") as (store, exchange):
        with pytest.raises(kind):
            await exchange.pull_image(ref, report=quiet, sha256=sha256)
        assert await store.list_images() == []


@needs_registry
async def test_short_names_mean_the_default_registry(tmp_path: Path) -> None:
    async with docker_registry(tmp_path / "registry") as registry:
        default = f"{registry.host}/org"
        async with node(tmp_path / "node", registry, default=default) as (store, exchange):
            image = await store.add_image("local", pieces(random_disk(1)), report=quiet)
            await exchange.push_image("local", f"{default}/ubuntu:latest", report=quiet)
            assert exchange.knows("ubuntu")
            with pytest.raises(ImageNotFound):
                await exchange.find_image("ubuntu")
            got = await exchange.pull_image("ubuntu:latest", report=quiet)
            assert (got.registry, got.name, got.digest) == (registry.host, "org/ubuntu", image.digest)
            assert await exchange.find_image("ubuntu") == got
