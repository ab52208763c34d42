"""Images of a fleet in memory: given to nodes, pulled by others, harmed on their way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.nodes.test_in_memory import call
from twinshare.agent.images.contract_samples import pieces, with_boot_sector
from twinshare.agent.images.peer_serve import SharedDisk
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.image import Image, PullRequest

MIB = 1 << 20
DISK = with_boot_sector(random.Random(1).randbytes(5 * MIB)) + bytes(3 * MIB) + random.Random(2).randbytes(MIB + 512)

Pack = Callable[[SharedDisk, Sequence[int]], bytes]


async def give(node: Node, name: str = "web:v1", disk: bytes = DISK) -> Image:
    return await node.import_image(LOCAL_ADMIN, name, pieces(disk), raw=True)


async def pull(node: Node, ref: str = "web:v1", name: str = "") -> Image:
    image: Image = await call(node, "pull_image", request=PullRequest(image=ref, name=name))
    return image


def content(node: Node, image: Image) -> bytes:
    return node.backends.images.base_path(image.digest).read_bytes()


def half(node: Node) -> list[Path]:
    """What is left of fetches that broke off."""
    return list(node.backends.images.partials.iterdir())


class Sent:
    """What nodes send of images: each answer goes through `harm` first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chunks = 0
        self.answers = 0
        self.harm: Callable[[bytes], bytes] = bytes
        plain = SharedDisk.pack

        def pack(disk: SharedDisk, places: Sequence[int]) -> list[bytes]:
            self.answers += 1
            answer = self.harm(b"".join(plain(disk, places)))
            self.chunks += len(places)
            return [answer]

        monkeypatch.setattr(SharedDisk, "pack", pack)
