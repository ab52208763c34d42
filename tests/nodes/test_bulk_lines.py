"""Images of peers over connections of their own: carried, refused, cut, revoked; what they lack comes over streams."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.agent.p2p.hosts import open_files
from tests.nodes.images import MIB, Sent, content, give, half, pull
from tests.nodes.test_in_memory import call, eventually, open_fleet
from twinshare.agent.images import bulk, peer_pull
from twinshare.agent.images.contract_samples import with_boot_sector
from twinshare.agent.images.peer_serve import SharedDisk
from twinshare.agent.p2p.memory import host as memory_host
from twinshare.agent.p2p.memory.host import MemoryHost
from twinshare.agent.reach import bulk_lines, fleet_images
from twinshare.protocols.access import Role
from twinshare.protocols.errors import PeerMisbehaved, PeerUnreachable, TwinshareError

pytestmark = pytest.mark.usefixtures("remote")

LARGE = with_boot_sector(random.Random(8).randbytes(16 * MIB))
"""So much that connections of their own carry half of it: a stream has asked for four MiB when it proves fast."""


class Lines:
    """Connections for bulk, from the first answer of a stream on; each answer on one of them goes through `harm`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sent: Sent) -> None:
        for module in (bulk, peer_pull):
            monkeypatch.setattr(module, "TRIAL", 1)
        monkeypatch.setattr(peer_pull, "FAST", 0)
        monkeypatch.setattr(bulk, "SLOW", 0)
        monkeypatch.setattr(bulk_lines, "answer_questions", self._answer)
        monkeypatch.setattr(fleet_images, "ABSENCE", 0.1)
        sent.harm = self._harm
        self.opened = self.answers = 0
        self.harm: Callable[[bytes], bytes] = bytes
        self._here = threading.local()

    def _answer(self, sock: socket.socket, disk: SharedDisk, within: float) -> None:
        self.opened += 1
        self._here.is_line = True
        try:
            bulk.answer_questions(sock, disk, within)
        finally:
            self._here.is_line = False

    def _harm(self, answer: bytes) -> bytes:
        if not getattr(self._here, "is_line", False):
            return answer
        self.answers += 1
        return self.harm(answer)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, sent: Sent) -> Lines:
    return Lines(monkeypatch, sent)


async def no_threads() -> bool:
    return bulk._threads.borrowed_tokens == bulk_lines._threads.borrowed_tokens == 0


async def test_they_carry_what_a_fast_stream_began_and_leave_nothing(tmp_path: Path, lines: Lines) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        await give(a, "small:v1", LARGE[: 2 * MIB])
        await pull(b, "small:v1")
        assert lines.opened == 0, "a stream has asked for all of it"
        before = open_files()

        async def closed() -> bool:
            return open_files() <= before

        assert content(b, await pull(b)) == LARGE
        assert lines.opened == 2
        assert lines.answers > 6
        await eventually(no_threads, 30)
        await eventually(closed, 30)


async def test_a_slow_stream_opens_none(tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_pull, "FAST", float("inf"))
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        assert content(b, await pull(b)) == LARGE
        assert lines.opened == 0


async def test_those_that_become_slow_give_way_to_the_stream(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "SLOW", float("inf"))
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        assert content(b, await pull(b)) == LARGE
        assert 0 < lines.answers <= 2 * 4
        assert lines.opened <= 2, "they are not opened again"


@pytest.mark.parametrize("refusal", ["no port", "no room", "no answer", "garbage", "hangs up"])
async def test_without_them_all_comes_over_the_stream(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    async def dial(_host: MemoryHost, peer: str, *_: object) -> socket.socket:
        if refusal == "no answer":
            raise PeerUnreachable("no", peer=peer)
        near, far = socket.socketpair()
        with far:
            if refusal == "garbage":
                far.sendall(bytes(100))
        return near

    if refusal == "no port":
        monkeypatch.setattr(memory_host, "_PORT", 0)
    elif refusal == "no room":
        monkeypatch.setattr(bulk_lines, "MAX_SERVED", 0)
    else:
        monkeypatch.setattr(MemoryHost, "dial_socket", dial)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        assert content(b, await pull(b)) == LARGE
        assert lines.opened == 0


async def test_a_peer_has_so_many_and_no_more(tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_lines, "MAX_SERVED_OF_PEER", 1)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        assert content(b, await pull(b)) == LARGE
        assert lines.opened == 1


async def test_after_a_cut_it_goes_on_where_it_was(tmp_path: Path, lines: Lines) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (network, (a, b)):
        await give(a, disk=LARGE)

        def harm(answer: bytes) -> bytes:
            if lines.answers == 3:
                trio.from_thread.run_sync(network.drop, a.peer_id, b.peer_id)
            return answer

        lines.harm = harm
        with trio.fail_after(120):
            assert content(b, await pull(b)) == LARGE
        await eventually(no_threads, 30)


async def test_who_is_revoked_gets_no_more(tmp_path: Path, lines: Lines) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        host = a.mesh.require_running().host

        async def disconnected() -> bool:
            return host.path(b.peer_id) is None

        async def revoke() -> None:
            await a.mesh.revoke(b.peer_id)
            await eventually(disconnected, 60)
            for _ in range(5):  # whoever waits for a stream's end has its turn
                await trio.lowlevel.checkpoint()

        def harm(answer: bytes) -> bytes:
            if lines.answers == 1:
                trio.from_thread.run(revoke)
            return answer

        lines.harm = harm
        with trio.fail_after(120), pytest.raises(TwinshareError):
            await pull(b)
        await eventually(no_threads, 30)
        assert [image.name for image in await call(b, "list_images")] == ["disk"]


async def test_a_damaged_answer_writes_no_byte(tmp_path: Path, lines: Lines) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        lines.harm = lambda answer: answer[:40] + bytes([answer[40] ^ 1]) + answer[41:]
        with pytest.raises((PeerMisbehaved, PeerUnreachable)):
            await pull(b)
        assert lines.answers
        for path in half(b):
            assert all(found in (0, byte) for found, byte in zip(path.read_bytes(), LARGE, strict=True))


async def test_a_node_that_leaves_ends_them(tmp_path: Path, lines: Lines) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        sending = trio.Event()

        def harm(answer: bytes) -> bytes:
            trio.from_thread.run_sync(sending.set)
            trio.from_thread.run(trio.sleep_forever)  # until the thread's task is cancelled
            return answer

        lines.harm = harm
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pull, b)
                await sending.wait()
                await call(a, "stop_p2p")
                nursery.cancel_scope.cancel()
            await eventually(no_threads, 30)


async def test_they_take_no_place_of_a_stream(tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_images, "MAX_READERS_OF_PEER", 1)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, disk=LARGE)
        await give(a, "small:v1", LARGE[: 2 * MIB])

        pulled = []

        def harm(answer: bytes) -> bytes:
            if lines.answers == 1:
                pulled.append(trio.from_thread.run(pull, b, "small:v1"))
            return answer

        lines.harm = harm
        with trio.fail_after(120):
            assert content(b, await pull(b)) == LARGE
        assert len(pulled) == 1
