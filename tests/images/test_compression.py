"""Images are compressed between peers where that saves time, and packed while what came before is sent."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from twinshare.agent.images.compression import LEAST, RECENT, TRIED, Compression
from twinshare.agent.images.index import index_bytes
from twinshare.agent.images.peer_serve import SharedDisk, serve_chunks
from twinshare.protocols.blob import BlobWant
from twinshare.protocols.tunnel import encode

TEXT = b"".join(random.Random(1).choice([b"alpha ", b"beta ", b"gamma "]) for _ in range(12_000))
FAST, SLOW = 1e-10, 1e-7
"""Seconds a byte: 10 GB/s and 10 MB/s, which no machine compresses at."""


def frame_size(compression: Compression, data: bytes) -> int:
    return sum(map(len, compression.frame(data)))


def after_sends_at(line: float) -> Compression:
    compression = Compression()
    for _ in range(RECENT):
        compression.frame(TEXT)
        compression.sent(LEAST, LEAST * line)
    return compression


@pytest.mark.parametrize(("line", "smaller"), [(FAST, False), (SLOW, True)])
def test_it_is_compressed_where_the_line_is_slow(line: float, smaller: bool) -> None:
    compression = after_sends_at(line)
    sizes = [frame_size(compression, TEXT) for _ in range(TRIED // 2)]
    assert all((size < len(TEXT)) is smaller for size in sizes)


def test_what_does_not_get_smaller_is_sent_as_it_is_on_any_line() -> None:
    compression = after_sends_at(SLOW)
    for _ in range(TRIED):
        assert frame_size(compression, os.urandom(65536)) > 65536
    assert not compression.pays


def test_a_line_that_became_slow_and_data_that_became_dense_are_noticed() -> None:
    compression = after_sends_at(FAST)
    for _ in range(RECENT):
        compression.sent(LEAST, LEAST * SLOW)
    assert frame_size(compression, TEXT) < len(TEXT)
    for _ in range(TRIED):
        compression.frame(os.urandom(65536))
    sizes = [frame_size(compression, TEXT) for _ in range(20 * TRIED)]
    assert sizes[-1] < len(TEXT)


async def test_the_next_answer_is_packed_while_one_is_sent(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "disk").write_bytes(content)
    fd = os.open(tmp_path / "disk", os.O_RDONLY)
    packed: list[int] = []

    class Noting(SharedDisk):
        def pack(self, places: list[int]) -> list[bytes]:  # type: ignore[override]  # what a question brings
            packed.extend(places)
            return super().pack(places)

    near, far = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_chunks, far, Noting(fd, index_bytes(content)))
        nursery.start_soon(near.send_all, b"".join(encode(BlobWant(chunks=[place])) for place in range(4)))
        with trio.fail_after(60):
            while len(packed) < 3:
                await trio.sleep(0.01)
        await trio.sleep(0.05)
        assert packed == [0, 1, 2], "not more of them than are bounded"
        nursery.cancel_scope.cancel()
    os.close(fd)
