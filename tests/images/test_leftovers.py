"""Whatever a kill left of a disk that was put together, at any byte: the next attempt takes it up and ends well."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import quiet, with_boot_sector
from twinshare.agent.images.index import index_bytes
from twinshare.agent.images.partial import SUFFIX, Partial
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.reference import parse_reference

_PART = random.Random(8).randbytes(150_000)
CONTENT = with_boot_sector(random.Random(7).randbytes(400_000) + bytes(70_000) + _PART + bytes(9000) + _PART)
CONTENT += bytes(-len(CONTENT) % 512)
INDEX = index_bytes(CONTENT)
ENDS = sorted({end for offset, length, _ in INDEX for end in (offset, offset + length)})


async def taken_up(store: DiskImageStore, left: bytes, mode: int = 0o600) -> int:
    """Take up what was left; the bytes that were fetched."""
    path = store.partials / f"{INDEX.digest.partition(':')[2]}{SUFFIX}"
    path.write_bytes(left)
    path.chmod(mode)
    fetched = 0

    async def fetch(partial: Partial) -> None:
        nonlocal fetched
        for _, (offset, length, digest) in list(partial.gaps.wanted()):
            fetched += length
            partial.fill([(digest, CONTENT[offset : offset + length])])

    image = await store.add_chunks(INDEX, fetch, ImportRequest(parse_reference("it"), Origin("a test"), quiet))
    assert store.base_path(image.digest).read_bytes() == CONTENT
    assert not path.exists()
    await store.remove_image("it", used_by=lambda _digest: [])
    return fetched


async def test_cut_at_every_border_of_a_chunk(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        for end in ENDS:
            for cut in {max(0, end - 1), end, min(end + 1, len(CONTENT))}:
                whole = {digest: length for offset, length, digest in INDEX if offset + length <= cut}
                missing = {digest: length for _, length, digest in INDEX if digest not in whole}
                left = CONTENT[:cut].ljust(len(CONTENT), b"\0")
                assert await taken_up(store, left) <= sum(missing.values()), "what is there is not fetched again"


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o000])
@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"x",
        CONTENT[:-1],
        CONTENT,
        CONTENT + b"x",
        os.urandom(len(CONTENT)),
        b"\xff" * (3 << 20),
        CONTENT[4096:] + CONTENT[:4096],
    ],
    ids=["empty", "a byte", "short", "whole", "long", "noise", "large", "shifted"],
)
async def test_whatever_was_left(tmp_path: Path, left: bytes, mode: int) -> None:
    async with disk_store(tmp_path) as store:
        fetched = await taken_up(store, left, mode)
        assert fetched == 0 if left == CONTENT else fetched <= INDEX.data_size
