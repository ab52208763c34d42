"""Our artifact at a real registry: pushed, read by other tools, pulled elsewhere, byte by byte the same."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.images.registry.servers import Settings, docker_registry, needs_registry, needs_skopeo, no_pause
from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import nobody, pieces, quiet, with_boot_sector
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.registry import packs
from twinshare.agent.images.registry.client import RegistryClient, Repository, open_registry_client
from twinshare.agent.images.registry.manifest import MANIFEST, Descriptor
from twinshare.agent.images.registry.pull import pull_chunks
from twinshare.agent.images.registry.push import push_image
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import ImageNotFound, InsufficientResources, RegistryFailed
from twinshare.protocols.image import Image
from twinshare.protocols.operation import Progress
from twinshare.protocols.reference import parse_reference

pytestmark = [
    needs_registry,
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
MIB = 1 << 20


def a_disk(seed: int = 1) -> bytes:
    source = random.Random(seed)
    words = [source.randbytes(8) for _ in range(3000)]
    text = b"".join(source.choice(words) for _ in range(300_000))
    return with_boot_sector(
        source.randbytes(2 * MIB) + bytes(30 * MIB) + text + bytes(5 * MIB) + source.randbytes(9000)
    ).ljust(64 * MIB, b"\0")


def changed(disk: bytes, seed: int = 2) -> bytes:
    """A few blocks written in place."""
    source, copy = random.Random(seed), bytearray(disk)
    for _ in range(4):
        place = source.randrange(0, 2 * MIB, 4096)
        copy[place : place + 4096] = source.randbytes(4096)
    return bytes(copy)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_SIZE", MIB)


class Counting(RegistryClient):
    """Counts the bytes that come over the wire."""

    fetched = 0

    def range(self, repository: Repository, blob: Descriptor, start: int, end: int) -> AsyncGenerator[bytes, None]:
        self.fetched += end - start
        return super().range(repository, blob, start, end)


@asynccontextmanager
async def node(folder: Path, *settings: Settings) -> AsyncIterator[tuple[DiskImageStore, Counting]]:
    """A store and a client, as one node has them."""
    async with disk_store(folder) as store, open_registry_client(settings, sleep=no_pause) as client:
        yield store, Counting(client.web)


async def add(store: DiskImageStore, ref: str, disk: bytes) -> Image:
    return await store.add_image(ref, pieces(disk, 1 << 20), report=quiet)


async def push(store: DiskImageStore, client: RegistryClient, ref: str, target: str) -> str:
    return await push_image(store, client, await store.get_image(ref), parse_reference(target), quiet)


async def pull(store: DiskImageStore, client: RegistryClient, ref: str, report: Any = quiet) -> Image:
    name = parse_reference(ref)
    repository = Repository.of(name.registry, name.name)
    found = await client.manifest(repository, name.tag)
    origin = Origin(ref, found.digest)
    return await pull_chunks(store, client, repository, found, ImportRequest(name, origin, report))


@pytest.mark.parametrize("kind", ["plain", "tls", "htpasswd", "tls and htpasswd"])
async def test_a_disk_goes_to_another_node_and_is_the_same(tmp_path: Path, kind: str) -> None:
    disk = a_disk()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(
            docker_registry(tmp_path / "registry", tls="tls" in kind, htpasswd="htpasswd" in kind)
        )
        here, there = [await stack.enter_async_context(node(tmp_path / name, registry)) for name in ("here", "there")]
        image = await add(here[0], "big", disk)
        ref = f"{registry.host}/org/big:v1"
        digest = await push(*here, "big", ref)
        got = await pull(*there, ref)
        assert got.digest == image.digest
        assert (got.registry, got.name, got.tag, got.manifest) == (registry.host, "org/big", "v1", digest)
        base = there[0].base_path(got.digest)
        assert base.read_bytes() == disk
        assert base.stat().st_mode & 0o777 == 0o444
        assert base.stat().st_blocks * 512 < 12 * MIB
        assert await there[0].get_image(f"{registry.host}/org/big@{digest}") == got
        assert list(there[0].partials.iterdir()) == []
        assert list(here[0].partials.iterdir()) == []


async def test_nothing_is_sent_twice(tmp_path: Path) -> None:
    async with docker_registry(tmp_path / "registry") as registry, node(tmp_path / "here", registry) as here:
        store, client = here
        await add(store, "big", a_disk())
        seen: list[Progress] = []
        first = await push(store, client, "big", f"{registry.host}/a:1")
        image = await store.get_image("big")
        again = await push_image(store, client, image, parse_reference(f"{registry.host}/a:2"), seen.append)
        assert again == first
        assert "there already" in seen[-1].message
        # Another repository of the same registry is mounted from.
        await store.repository.rename(parse_reference(f"{registry.host}/a:1"), image.digest, Origin("push", first))
        seen.clear()
        await push_image(store, client, image, parse_reference(f"{registry.host}/b:1"), seen.append)
        assert f"{seen[-1].done} bytes were there already" in seen[-1].message


async def test_only_what_changed_is_fetched(tmp_path: Path) -> None:
    disk = a_disk()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here, there = [await stack.enter_async_context(node(tmp_path / name, registry)) for name in ("here", "there")]
        for tag, content in (("1", disk), ("2", changed(disk))):
            await add(here[0], f"big:{tag}", content)
            await push(*here, f"big:{tag}", f"{registry.host}/big:{tag}")
        await pull(*there, f"{registry.host}/big:1")
        whole, there[1].fetched = there[1].fetched, 0
        seen: list[Progress] = []
        got = await pull(*there, f"{registry.host}/big:2", seen.append)
        assert there[0].base_path(got.digest).read_bytes() == changed(disk)
        assert there[1].fetched < whole / 4
        assert any("were here already" in progress.message for progress in seen)
        assert seen[-1].done == seen[-1].total
        # The same content under another name costs no chunk at all.
        there[1].fetched = 0
        await push(*here, "big:2", f"{registry.host}/other:1")
        await pull(*there, f"{registry.host}/other:1")
        assert there[1].fetched < 10_000


@needs_skopeo
async def test_other_tools_read_it(tmp_path: Path) -> None:
    disk = a_disk()
    async with docker_registry(tmp_path / "registry") as registry, node(tmp_path / "here", registry) as here:
        image = await add(here[0], "big", disk)
        digest = await push(*here, "big", f"{registry.host}/org/big:v1")
        skopeo = partial(trio.run_process, capture_stdout=True, capture_stderr=True)
        shown = await skopeo(["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/org/big:v1"])
        inspected = json.loads(shown.stdout)
        assert inspected["Digest"] == digest
        assert inspected["Architecture"] == "amd64"
        assert inspected["Labels"]["twinshare.disk.digest"] == image.digest
        copy = tmp_path / "copy"
        source = f"docker://{registry.host}/org/big:v1"
        await skopeo(["skopeo", "copy", "--src-tls-verify=false", source, f"oci:{copy}:v1"])
        manifest = json.loads((copy / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes())
        assert manifest["mediaType"] == MANIFEST
        blobs = [str(copy / "blobs/sha256" / layer["digest"].removeprefix("sha256:")) for layer in manifest["layers"]]
        assert len(blobs) > 3
        done = await trio.run_process(["zstd", "-dc", *blobs[1:]], capture_stdout=True)
        assert done.stdout == disk


@needs_skopeo
async def test_a_copy_at_another_registry_is_the_same_image(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(docker_registry(tmp_path / name)) for name in ("r1", "r2")]
        here = await stack.enter_async_context(node(tmp_path / "here", one))
        there = await stack.enter_async_context(node(tmp_path / "there", two))
        image = await add(here[0], "big", a_disk())
        digest = await push(*here, "big", f"{one.host}/big:1")
        flags = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        copy = ["skopeo", "copy", *flags, f"docker://{one.host}/big:1", f"docker://{two.host}/org/copy:1"]
        await trio.run_process(copy, capture_stdout=True, capture_stderr=True)
        got = await pull(*there, f"{two.host}/org/copy:1")
        assert (got.digest, got.manifest) == (image.digest, digest)


async def test_what_a_broken_pull_left_is_not_fetched_again(tmp_path: Path) -> None:
    disk = a_disk()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here = await stack.enter_async_context(node(tmp_path / "here", registry))
        await add(here[0], "big", disk)
        await push(*here, "big", f"{registry.host}/big:1")
        async with node(tmp_path / "whole", registry) as fresh:
            await pull(*fresh, f"{registry.host}/big:1")
            whole = fresh[1].fetched
        fetched = 0
        for fraction in (0.3, 0.7):
            async with node(tmp_path / "there", registry) as there:
                with trio.CancelScope() as scope:

                    def stop(progress: Progress, scope: trio.CancelScope = scope, fraction: float = fraction) -> None:
                        if progress.total and progress.done > fraction * progress.total:
                            scope.cancel()

                    await pull(*there, f"{registry.host}/big:1", stop)
                assert scope.cancelled_caught
                assert await there[0].list_images() == []
                assert len(list(there[0].partials.iterdir())) == 1
                fetched += there[1].fetched
        async with node(tmp_path / "there", registry) as there:
            got = await pull(*there, f"{registry.host}/big:1")
            assert there[0].base_path(got.digest).read_bytes() == disk
            assert there[1].fetched < 0.6 * whole
            assert list(there[0].partials.iterdir()) == []


async def test_two_pulls_of_one_image_fetch_it_once(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here, there = [await stack.enter_async_context(node(tmp_path / name, registry)) for name in ("here", "there")]
        await add(here[0], "big", a_disk())
        await push(*here, "big", f"{registry.host}/big:1")
        await push(*here, "big", f"{registry.host}/big:2")
        async with trio.open_nursery() as nursery:
            for tag in ("1", "2", "1"):
                nursery.start_soon(pull, *there, f"{registry.host}/big:{tag}")
        async with node(tmp_path / "alone", registry) as alone:
            await pull(*alone, f"{registry.host}/big:1")
            assert there[1].fetched < alone[1].fetched + 100_000
        assert {image.tag for image in await there[0].list_images()} == {"1", "2"}


async def test_damage_at_the_registry_is_found_and_nothing_wrong_is_kept(tmp_path: Path) -> None:
    disk = a_disk()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here, there = [await stack.enter_async_context(node(tmp_path / name, registry)) for name in ("here", "there")]
        await add(here[0], "big", disk)
        await push(*here, "big", f"{registry.host}/big:1")
        blobs = sorted(
            (tmp_path / "registry/store").rglob("blobs/sha256/*/*/data"), key=lambda path: path.stat().st_size
        )
        victim = blobs[-1]
        good = victim.read_bytes()
        for place in (0, len(good) // 2):
            victim.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(RegistryFailed, match="damaged"):
                await pull(*there, f"{registry.host}/big:1")
        victim.write_bytes(good[:-5000])
        with pytest.raises(RegistryFailed):
            await pull(*there, f"{registry.host}/big:1")
        victim.unlink()
        with pytest.raises((RegistryFailed, ImageNotFound)):
            await pull(*there, f"{registry.host}/big:1")
        assert await there[0].list_images() == []
        victim.write_bytes(good)
        got = await pull(*there, f"{registry.host}/big:1")
        assert there[0].base_path(got.digest).read_bytes() == disk


async def test_a_pull_without_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here, there = [await stack.enter_async_context(node(tmp_path / name, registry)) for name in ("here", "there")]
        await add(here[0], "big", a_disk())
        await push(*here, "big", f"{registry.host}/big:1")
        written = 0

        really = os.pwritev

        def full(fd: int, parts: list[memoryview], offset: int) -> int:
            nonlocal written
            written += sum(map(len, parts))
            if written > MIB:
                raise OSError(28, "No space left on device")
            return really(fd, parts, offset)

        monkeypatch.setattr(os, "pwritev", full)
        with pytest.raises(InsufficientResources):
            await pull(*there, f"{registry.host}/big:1")
        assert list(there[0].partials.iterdir()) == []
        assert await there[0].list_images() == []


async def test_an_image_may_be_removed_while_it_is_pulled_under_another_name(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here, there = [await stack.enter_async_context(node(tmp_path / name, registry)) for name in ("here", "there")]
        disk = a_disk()
        await add(here[0], "big", disk)
        await push(*here, "big", f"{registry.host}/big:1")
        await add(there[0], "old", changed(disk))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, *there, f"{registry.host}/big:1")
            nursery.start_soon(partial(there[0].remove_image, "old", used_by=nobody))
        (image,) = await there[0].list_images()
        assert there[0].base_path(image.digest).read_bytes() == disk
