"""What does not get smaller is sent of an image as it is, in frames that every zstd reads."""

import os
from pathlib import Path

import pytest
import zstandard

from twinshare.agent.images.compression import plain_frame
from twinshare.agent.images.index import index_bytes
from twinshare.agent.images.peer_serve import SharedDisk
from twinshare.agent.images.registry.packs import MAX_FRAME, unpack_chunk
from twinshare.protocols.blob import LENGTH


@pytest.mark.parametrize("size", [1, 4096, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 1 << 18])
def test_a_plain_frame_is_zstd(size: int) -> None:
    data = os.urandom(size)
    frame = plain_frame(data)
    assert len(frame) <= MAX_FRAME
    assert zstandard.frame_content_size(frame) == size
    assert unpack_chunk(zstandard.ZstdDecompressor(), frame, size) == data


def test_what_does_not_get_smaller_is_sent_as_it_is(tmp_path: Path) -> None:
    content = os.urandom(2 << 20) + b"text " * 400_000
    (tmp_path / "disk").write_bytes(content)
    fd = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        disk, position, sizes = SharedDisk(fd, index_bytes(content)), 0, []
        for place, (_, length, _) in enumerate(disk.index):
            answer = disk.pack([place])
            frame = answer[LENGTH.size :]
            assert unpack_chunk(zstandard.ZstdDecompressor(), frame, length) == content[position : position + length]
            sizes.append(len(frame) / length)
            position += length
    finally:
        os.close(fd)
    assert sizes[0] > 1, "random data is not compressed"
    assert sizes[-1] < 0.1, "and text after it is"
