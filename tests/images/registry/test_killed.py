"""A process killed in the middle of a pull, again and again: the next one takes up what is there, and only the rest."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from blake3 import blake3

from tests.images.registry.servers import Settings, docker_registry, needs_registry
from tests.images.registry.test_artifact import add, node, push
from tests.images.test_store import check_sound
from twinshare.agent.images.contract_samples import with_boot_sector
from twinshare.agent.images.registry import packs
from twinshare.agent.images.registry.client import Repository
from twinshare.agent.images.registry.manifest import twinshare_layers
from twinshare.agent.images.registry.packs import MAX_INDEX, Layout, decode_layout

pytestmark = [
    needs_registry,
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
MIB = 1 << 20
FRACTIONS = (0.1, 0.35, 0.6, 0.8)


def disk(seed: int) -> bytes:
    source = random.Random(seed)
    text = source.randbytes(10 * MIB).hex().encode()
    return with_boot_sector(
        source.randbytes(20 * MIB) + bytes(20 * MIB) + text + source.randbytes(8 * MIB + 512)
    ).ljust(80 * MIB, b"\0")


@asynccontextmanager
async def published(tmp_path: Path, content: bytes) -> AsyncIterator[tuple[Settings, str, Layout, list[str]]]:
    """A registry with the disk, its reference there, where its chunks lie, and the digests of its packs."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry"))
        here = await stack.enter_async_context(node(tmp_path / "here", registry))
        await add(here[0], "big", content)
        ref = f"{registry.host}/big:1"
        await push(*here, "big", ref)
        repository = Repository(registry.host, "big")
        found = await here[1].manifest(repository, "1")
        index, layers = twinshare_layers(found.manifest)
        data = await here[1].blob(repository, index, MAX_INDEX)
        layout = decode_layout(data, [layer.size for layer in layers], 1 << 40)
        yield registry, ref, layout, [layer.digest for layer in layers]


def pulled(folder: Path, registry: Settings, ref: str, fraction: float, log: Path) -> str:
    """Run the pulling process, and kill it when it says that `fraction` is there; what it said. Blocking."""
    argv = [
        sys.executable,
        "-m",
        "tests.images.registry.puller",
        str(folder),
        registry.host,
        ref,
        str(fraction),
        str(log),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said == "now":
            process.send_signal(signal.SIGKILL)
    assert process.returncode == (-signal.SIGKILL if said == "now" else 0)
    return said


def chunks_there(folder: Path, layout: Layout) -> set[bytes]:
    """What of the disk is in the file that the killed process left."""
    (path,) = (folder / "partial").iterdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        return {
            digest for offset, length, digest in layout.index if blake3(os.pread(fd, length, offset)).digest() == digest
        }
    finally:
        os.close(fd)


def frames_asked(log: Path, layout: Layout, digests: list[str]) -> list[bytes]:
    """Every chunk whose whole frame was asked for, as often as it was."""
    asked = [
        (pack, int(start), int(end)) for pack, start, end in (line.split() for line in log.read_text().splitlines())
    ]
    found = []
    for (_, _, digest), place in zip(layout.index, layout.ranges(), strict=True):
        begin, end = place.offset, place.offset + place.length
        found += [
            digest for pack, first, last in asked if pack == digests[place.pack] and first <= begin and end <= last
        ]
    return found


async def test_a_pull_that_is_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_SIZE", 5 * MIB)
    content = disk(1)
    async with published(tmp_path, content) as (registry, ref, layout, digests):
        folder, there = tmp_path / "there", set[bytes]()
        for number, fraction in enumerate((*FRACTIONS, 2.0)):
            log = tmp_path / f"log-{number}"
            said = await trio.to_thread.run_sync(pulled, folder, registry, ref, fraction, log)
            assert said == ("now" if fraction < 1 else "done")
            asked = frames_asked(log, layout, digests)
            assert not there & set(asked), "what is there is asked for again"
            assert len(asked) == len(set(asked)), "a chunk is asked for twice"
            if fraction < 1:
                there = chunks_there(folder, layout)
                assert len(there) > fraction * len(layout.index) * 0.9
        assert len(there) + len(set(asked)) == len({digest for _, _, digest in layout.index})
        names = await trio.to_thread.run_sync(in_a_thread, folder)
        assert names == {"big"}
        (base,) = (folder / "raw").iterdir()
        assert base.read_bytes() == content


def in_a_thread(folder: Path) -> set[str]:
    """`check_sound` runs a loop of its own."""
    return check_sound(folder, [])
