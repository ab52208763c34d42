"""A disk with holes is sent without them, and is the same disk at the node; anything else is sent as it is."""

import io
import os
from pathlib import Path

import httpx
import zstandard

from tests.api.served import served
from twinshare.agent.images.contract_samples import with_boot_sector
from twinshare.agent.images.disks import Packing
from twinshare.agent.images.unpack import ZERO_FRAME, ZEROS, unpack
from twinshare.api.sparse import disk_parts

MIB = 1 << 20


def sparse_file(path: Path, size: int = 1 << 30) -> dict[int, bytes]:
    """A file of holes but for a few places, one of which is not on a block."""
    placed = {0: with_boot_sector(os.urandom(5000)), 100 * MIB + 4096: os.urandom(3 * MIB + 17), size - 700: b"end"}
    with path.open("wb") as file:
        file.truncate(size)
        for place, data in placed.items():
            file.seek(place)
            file.write(data)
    return placed


def test_holes_are_not_sent(tmp_path: Path) -> None:
    placed = sparse_file(tmp_path / "disk")
    with (tmp_path / "disk").open("rb") as file:
        parts = list(disk_parts(file))
    assert sum(map(len, parts)) < 4 * MIB
    position, found = 0, {}
    for part in parts:
        plain = zstandard.decompress(part)
        for place, data in placed.items():
            if position <= place and place + len(data) <= position + len(plain):
                found[place] = plain[place - position : place - position + len(data)]
        position += len(plain)
    assert position == 1 << 30
    assert found.keys() >= {0, (1 << 30) - 700}
    assert all(found[place] == placed[place] for place in found)


def test_what_has_no_holes_is_sent_as_it_is(tmp_path: Path) -> None:
    packed = zstandard.compress(bytes(MIB)).ljust(64 * MIB, b"\0")
    with (tmp_path / "packed").open("wb") as made:
        made.write(packed[:100])
        made.truncate(64 * MIB)
    with (tmp_path / "packed").open("rb") as file:
        assert b"".join(disk_parts(file)) == packed
    assert b"".join(disk_parts(io.BytesIO(b"x" * 600_000))) == b"x" * 600_000


async def test_a_sparse_disk_arrives_whole(tmp_path: Path) -> None:
    async with served(tmp_path / "node") as api:
        placed = sparse_file(tmp_path / "disk", 256 * MIB)
        with (tmp_path / "disk").open("rb") as file:
            sent = b"".join(disk_parts(file))
        made = await _import(api.client, sent)
        assert made["size"] == 256 * MIB
        assert len(sent) < 4 * MIB
        plain = bytearray(256 * MIB)
        for place, data in placed.items():
            plain[place : place + len(data)] = data
        again = await _import(api.client, bytes(plain), "plain")
        assert again["digest"] == made["digest"]


async def _import(client: httpx.AsyncClient, content: bytes, name: str = "sparse") -> dict[str, object]:
    headers = {"content-type": "application/octet-stream"}
    answer = await client.post(f"/api/image/import?name={name}", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def test_the_frame_of_a_hole_is_a_frame_that_every_zstd_reads() -> None:
    assert zstandard.decompress(ZERO_FRAME) == ZEROS
    content = ZERO_FRAME * 3 + zstandard.compress(b"data") + ZERO_FRAME + zstandard.compress(b"end")
    assert b"".join(unpack(io.BytesIO(content).read, Packing.ZSTD)) == ZEROS * 3 + b"data" + ZEROS + b"end"
    slow = io.BytesIO(content)
    assert (
        b"".join(unpack(lambda count: slow.read(min(count, 7)), Packing.ZSTD)) == ZEROS * 3 + b"data" + ZEROS + b"end"
    )
