"""Images of peers that send nonsense, ask for it, or may not have what they ask for."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.nodes.images import DISK, MIB, Sent, content, give, half, pull
from tests.nodes.test_in_memory import call, join, open_fleet, open_node_on
from tests.stopwatch import within
from twinshare.agent.images import peer_pull, peer_serve
from twinshare.agent.node import Node
from twinshare.agent.p2p.host import Stream
from twinshare.agent.reach import fleet_images
from twinshare.protocols.access import Limits, Role
from twinshare.protocols.blob import PROTOCOL, BlobAnswer, BlobRequest, BlobWant
from twinshare.protocols.errors import (
    ImageNotFound,
    PeerMisbehaved,
    PeerUnreachable,
    QuotaExceeded,
    TwinshareError,
)
from twinshare.protocols.tunnel import encode

pytestmark = pytest.mark.usefixtures("remote")


HARM: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda answer: answer[:40] + bytes([answer[40] ^ 1]) + answer[41:],
    "an endless frame": lambda answer: b"\xff\xff\xff\xff" + answer[4:],
    "no chunk": lambda answer: bytes(4),
    "garbage": lambda answer: os.urandom(len(answer)),
    "less": lambda answer: answer[:-1],
    "nothing": lambda answer: b"",
}


@pytest.mark.parametrize("kind", HARM)
async def test_a_peer_that_sends_nonsense_writes_no_byte(
    tmp_path: Path, sent: Sent, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_pull, "STALL", 0.3)
    sent.harm = HARM[kind]
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        with trio.fail_after(30), pytest.raises((PeerMisbehaved, PeerUnreachable)):
            await pull(b)
        assert [image.name for image in await call(b, "list_images")] == ["disk"]
        for path in half(b):
            assert all(byte in (0, DISK[place]) for place, byte in enumerate(path.read_bytes()[: len(DISK)]))
        sent.harm = bytes
        assert content(b, await pull(b)) == DISK + bytes(-len(DISK) % 512)


async def test_a_disk_that_rotted_there_is_not_sent(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        path = a.backends.images.base_path((await give(a)).digest)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(b"rot")
        with pytest.raises(PeerMisbehaved, match="cannot read"):
            await pull(b)
        await call(a, "fsck_images")
        with pytest.raises(ImageNotFound):
            await pull(b)


async def test_who_may_read_and_from_whom_it_is_taken(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.VIEWER) as (_, (a, b)):
        given = await give(a)
        assert (await pull(b)).digest == given.digest, "a viewer reads"
        await give(b, "theirs:v1", b"who knows what")
        with pytest.raises(ImageNotFound):
            await pull(a, "theirs:v1")
    async with open_fleet(tmp_path / "second", Role.OPERATOR) as (_, (a, b)):
        given = await give(b, "theirs:v1")
        assert (await pull(a, "theirs:v1")).digest == given.digest, "an operator could put it here"


async def test_a_limit_of_image_bytes_holds(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR, limits=Limits(image_bytes=2 * MIB)) as (_, (a, b)):
        await give(a)
        await give(a, "small:v1", random.Random(3).randbytes(MIB))
        await pull(b, "small:v1")
        with pytest.raises(QuotaExceeded, match=str(2 * MIB)):
            await pull(b)


async def test_a_disk_larger_than_this_node_takes_is_not_fetched(tmp_path: Path, sent: Sent) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        b.backends.images.max_size = 4 * MIB
        with pytest.raises(ImageNotFound):
            await pull(b)
        assert sent.chunks == 0


@asynccontextmanager
async def asked(near: Node, far: Node, *frames: Any) -> AsyncIterator[Stream]:
    """A stream that begins with these words."""
    running = near.mesh.require_running()
    await running.sessions.session_to(far.peer_id)
    stream = await running.host.open_stream(far.peer_id, PROTOCOL)
    for frame in frames:
        await stream.send_all(frame if isinstance(frame, bytes) else encode(frame))
    try:
        yield stream
    finally:
        stream.reset()


async def test_whatever_a_peer_says_at_a_stream_of_images_the_node_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_serve, "IDLE", 0.2)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        digest = (await give(a)).digest
        request = BlobRequest(digest=digest)
        for frames in (
            [os.urandom(64)],
            [b"\xff\xff"],
            [request, BlobWant(chunks=[1 << 40])],
            [request, BlobWant(chunks=[0] * 64)],
            [request, b"\x00\x01\xc0"],
            [request],
        ):
            async with asked(b, a, *frames) as stream:
                with within(10):
                    try:
                        while await stream.receive_some(65536):
                            pass
                    except trio.BrokenResourceError:
                        pass
        answers = []
        for wrong in ("blake3:" + "0" * 64, digest):
            async with asked(b, a, BlobRequest(digest=wrong)) as stream:
                answers.append(await stream.receive_some(4096))
        assert b"image_not_found" in answers[0]
        assert answers[1] == encode(BlobAnswer())
        assert content(b, await pull(b)) == DISK + bytes(-len(DISK) % 512)


async def test_a_peer_reads_so_many_at_once_and_no_more(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        digest = (await give(a)).digest
        async with trio.open_nursery() as nursery:
            answers: list[bytes] = []

            async def hold() -> None:
                async with asked(b, a, BlobRequest(digest=digest)) as stream:
                    answers.append(bytes(await stream.receive_some(4096)))
                    await trio.sleep_forever()

            for _ in range(9):
                nursery.start_soon(hold)
            with within(10):
                while len(answers) < 9:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert sum(b"overloaded" in answer for answer in answers) == 1
        with within(10):
            while True:
                try:
                    await pull(b)
                    break
                except TwinshareError:
                    await trio.sleep(0.05)


async def test_a_node_that_leaves_while_it_sends_is_only_out_of_reach(
    tmp_path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_images, "ABSENCE", 1.0)
    async with open_fleet(tmp_path) as (network, (a,)):
        async with open_node_on(network, tmp_path, "leaver") as leaver:
            await join(leaver, a)
            await give(leaver)
            leave = trio.Event()

            def harm(answer: bytes) -> bytes:
                trio.from_thread.run_sync(leave.set)
                trio.from_thread.run(trio.sleep, 0.2)
                return answer

            sent.harm = harm

            async def fetch() -> None:
                with pytest.raises(TwinshareError):
                    await pull(a)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch)
                await leave.wait()
                await call(leaver, "stop_p2p")
        assert [image.name for image in await call(a, "list_images")] == ["disk"]
