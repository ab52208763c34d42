"""What a guest sends that breaks the protocol, lies or floods: bounded, cut off, and no harm to other guests."""

from __future__ import annotations

import tracemalloc
from binascii import crc32
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.agent.guest_lab import open_guest, open_lab
from tests.agent.nodes import open_test_node, spec
from tests.agent.test_guest_sessions import guests_of
from tests.stopwatch import within
from twinshare.agent.guest import operations, vm_guest
from twinshare.agent.guest.channel import ChannelPort
from twinshare.agent.guest.vm_guest import VmGuest
from twinshare.agent.hypervisor.memory.guest import stream_pair
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.errors import GuestRefused, GuestUnreachable
from twinshare.protocols.guest import ExecRequest
from twinshare.protocols.guest_channel import (
    ACK,
    ACK_BODY,
    ANNOUNCE,
    DATA,
    DATA_HEAD,
    ERR,
    HEAD,
    HELLO,
    HELLO_BACK,
    MAX_BODY,
    MESSAGE,
    NONCE,
    OUT,
    PART,
    SUMMED,
    WINDOW,
    Frame,
    FrameReader,
    frame,
    summed_frame,
)
from twinshare.protocols.guest_stream import ReadFile, WriteFile

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
FLOOD_FOR = 1.0
MOST_TAKEN = 24 << 20
"""Bytes of a flood that are read in that time, with what waits in sockets; hundreds of MiB without a bound."""
MOST_MEMORY = 6 << 20
LARGE = (1 << 63) - 1
NUL = bytes(16)


def say(stream: int, **fields: Any) -> bytes:
    return frame(MESSAGE, stream, msgspec.msgpack.encode(fields))


def data(number: int, offset: int, content: bytes, channel: int = OUT) -> bytes:
    return frame(DATA, number, DATA_HEAD.pack(offset, channel) + content)


RESUMED = say(0, op="resumed", version=1, instance=NUL, streams=[])
REPORT: dict[str, Any] = {
    "op": "report", "hostname": "h", "listening": [], "addresses": [], "host_keys": [], "ssh": False,
}  # fmt: skip


class Hostile:
    """A guest's side that is written by a test. `behave` has one connection, whose HELLO was answered."""

    def __init__(self, behave: Callable[[Hostile], Awaitable[None]], *, greets: bool = True) -> None:
        self._behave, self._greets = behave, greets
        self.connections = self.sent = self.hellos = 0
        self._reader = FrameReader()

    async def run(self, port: trio.SocketStream) -> None:
        self.port, self.connections, self._reader = port, self.connections + 1, FrameReader()
        async with port:
            with suppress(*_BROKEN):
                if self._greets:
                    await self._greet()
                await self._behave(self)

    async def _greet(self) -> None:
        seen = b""
        while (at := seen.find(HELLO)) < 0 or len(seen) < at + len(HELLO) + NONCE:
            seen += await self.receive()
        end = at + len(HELLO) + NONCE
        self._frames = self._reader.feed(seen[end:])
        await self.send(HELLO_BACK + seen[at + len(HELLO) : end])

    async def receive(self) -> bytes:
        found = bytes(await self.port.receive_some(1 << 18))
        if not found:
            raise trio.BrokenResourceError
        self.hellos += found.count(HELLO)
        return found

    async def send(self, content: bytes) -> None:
        await self.port.send_all(content)
        self.sent += len(content)

    async def flood(self, content: bytes) -> None:
        content *= max(1, (64 << 10) // len(content))
        while True:
            await self.send(content)

    async def next_frame(self) -> Frame:
        while not self._frames:
            self._frames = self._reader.feed(await self.receive())
        return self._frames.pop(0)

    async def until_open(self) -> int:
        """The number of the stream that the agent opens next."""
        await self.send(RESUMED)
        while True:
            one = await self.next_frame()
            if one.kind == MESSAGE and msgspec.msgpack.decode(one.body)["op"] == "open":
                return one.stream


@asynccontextmanager
async def hostile_guest(folder: Path, hostile: Hostile) -> AsyncIterator[VmGuest]:
    async with trio.open_nursery() as nursery:

        async def dial() -> trio.SocketStream:
            near, far = stream_pair()
            nursery.start_soon(hostile.run, far)
            return near

        async def is_open() -> bool:
            await trio.lowlevel.checkpoint()
            return True

        guest = VmGuest("two", folder / "two")
        nursery.start_soon(guest.run, ChannelPort(dial, is_open), "two")
        await trio.testing.wait_all_tasks_blocked()
        yield guest
        nursery.cancel_scope.cancel()


async def works(guest: VmGuest) -> None:
    """An honest guest, meanwhile."""
    with within(15):
        session = await guest.start_session(ExecRequest(command=["echo", "x"]), "local")
        async with session.reading(0) as reader:
            assert await session.read(reader, 10) == [(0, OUT, b"x\n")]
            assert await session.read(reader, 10) == []


async def before_answering(guest: Hostile) -> None:
    await guest.flood(b"\x01" * 4096)


async def announcing(guest: Hostile) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.flood, ANNOUNCE + NUL)
        while True:
            await guest.receive()


def flooding(content: bytes) -> Callable[[Hostile], Awaitable[None]]:
    async def behave(guest: Hostile) -> None:
        await guest.send(RESUMED)
        await guest.flood(content)

    return behave


FLOODS = {
    "noise before the answer": Hostile(before_answering, greets=False),
    "announcements": Hostile(announcing, greets=False),
    "output of no stream": Hostile(flooding(data(77, 0, bytes(4096)))),
    "acknowledgements": Hostile(flooding(frame(ACK, 77, ACK_BODY.pack(0, 0)))),
    "reports": Hostile(flooding(say(0, **REPORT))),
    "empty parts": Hostile(flooding(frame(PART, 0, b""))),
    "parts without an end": Hostile(flooding(frame(PART, 0, bytes(MAX_BODY)))),
}


@pytest.mark.parametrize("hostile", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_bounded(tmp_path: Path, hostile: Hostile) -> None:
    async with open_lab(tmp_path) as cutter, open_guest(tmp_path / "one", cutter) as honest:
        await works(honest)
        tracemalloc.start()
        try:
            async with hostile_guest(tmp_path, hostile):
                await trio.sleep(FLOOD_FOR)
                await works(honest)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert hostile.sent < MOST_TAKEN
        assert peak < MOST_MEMORY
        assert hostile.hellos <= 3 * hostile.connections


PORTS = [(port % 65535 + 1, "::") for port in range(1_000_000)]
BROKEN = {
    "a damaged frame": RESUMED[:-1] + b"\xff",
    "a frame of no kind": HEAD.pack(9, 0, 0, 0),
    "a frame that is too long": HEAD.pack(DATA, 0, MAX_BODY + 1, 0),
    "no msgpack": frame(MESSAGE, 0, b"\xc1"),
    "nested lists": frame(MESSAGE, 0, b"\x91" * 60_000),
    "an unknown message": say(0, op="nonsense"),
    "content before the answer": data(1, 0, b"x"),
    "two answers": RESUMED * 2,
    "more ports than there are": RESUMED + b"".join(
        frame(PART, 0, msgspec.msgpack.encode({**REPORT, "listening": PORTS})[at : at + MAX_BODY])
        for at in range(0, 5 * MAX_BODY, MAX_BODY)
    ),
    "too many ports": RESUMED + say(0, **{**REPORT, "listening": PORTS[:257]}),
    "a port that is none": RESUMED + say(0, **{**REPORT, "listening": [(70000, "::")]}),
    "a huge name": RESUMED + say(0, **{**REPORT, "hostname": "x" * 5000}),
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
async def test_what_breaks_the_protocol_is_cut_off_and_dialled_again_more_and_more_slowly(
    tmp_path: Path, content: bytes
) -> None:
    async def behave(guest: Hostile) -> None:
        await guest.send(content)
        while True:
            await guest.receive()

    hostile = Hostile(behave)
    async with hostile_guest(tmp_path, hostile) as guest:
        await trio.sleep(0.6)
        with trio.fail_after(60):
            while hostile.connections < 2:
                await trio.sleep(0.01)
        assert hostile.connections < 8
        assert guest.report is None
        assert guest.view_report().ready is False or content.startswith(RESUMED)


LIES = {
    "a short data frame": frame(DATA, 1, b"x"),
    "a gap": data(1, 5, b"x"),
    "an offset beyond all": data(1, (1 << 64) - 1, b"x"),
    "a channel that is none": data(1, 0, b"x", 7),
    "more than the window": b"".join(data(1, at, bytes(MAX_BODY - 9)) for at in range(0, 3 * WINDOW, MAX_BODY - 9)),
    "input that was not sent": frame(ACK, 1, ACK_BODY.pack(LARGE, LARGE)),
    "a short acknowledgement": frame(ACK, 1, b"\0"),
    "an end before its output": data(1, 0, b"xxx") + say(1, op="end", offset=1, code=0),
    "a code that is none": say(1, op="end", offset=0, code=256),
    "a digest that is none": say(1, op="end", offset=0, digest="x" * 65),
    "an offset that is none": say(1, op="end", offset=-1),
    "content that is damaged": summed_frame(1, 0, b"content", crc32(b"contend")),
    "content of another place": summed_frame(1, 0, b"a", crc32(b"a")) + summed_frame(1, 1, b"b", crc32(b"b")),
    "content with a gap": summed_frame(1, 1, b"x", crc32(b"x")),
    "content that is too short": frame(SUMMED, 1, b"x"),
    "content taken in the middle of a frame": say(1, op="opened", summed=0) + frame(ACK, 1, ACK_BODY.pack(1, 1)),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
async def test_lies_about_a_session_end_the_connection_and_no_byte_is_believed(tmp_path: Path, content: bytes) -> None:
    async def behave(guest: Hostile) -> None:
        number = await guest.until_open()
        assert number == 1
        await guest.send(say(1, op="opened") + content)
        while True:
            await guest.receive()

    hostile = Hostile(behave)
    async with hostile_guest(tmp_path, hostile) as guest:
        with trio.fail_after(60):
            session = await guest.start_session(ExecRequest(command=["true"], detach=True), "local")
            while hostile.connections < 2:
                await trio.sleep(0.01)
        assert session.output.end <= WINDOW
        assert session.record.exit_code is None
        await guest.end_session(session)
        assert guest.running() == []


async def test_signals_and_exit_codes_that_no_system_has_are_shown_as_numbers(tmp_path: Path) -> None:
    async def behave(guest: Hostile) -> None:
        await guest.until_open()
        await guest.send(data(1, 0, b"out", ERR) + say(1, op="end", offset=3, signal=200))
        await guest.receive()
        await trio.sleep_forever()

    async with hostile_guest(tmp_path, Hostile(behave)) as guest:
        with trio.fail_after(60):
            session = await guest.start_session(ExecRequest(command=["true"]), "local")
            async with session.reading(0) as reader:
                assert await session.read(reader, 10) == [(0, ERR, b"out")]
                assert await session.read(reader, 10) == []
        assert session.record.signal == "200"


async def silent(guest: Hostile) -> None:
    await guest.send(RESUMED)
    while True:
        await guest.receive()


async def test_a_guest_that_stalls_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_guest, "OPEN_WITHIN", 0.2)
    monkeypatch.setattr(vm_guest, "READY_WITHIN", 0.2)
    async with hostile_guest(tmp_path, Hostile(silent)) as guest:
        with trio.fail_after(20), pytest.raises(GuestUnreachable, match=r"did not answer within 0\.2 s"):
            await guest.open({"kind": "call", "do": "list", "path": b"/"})

    async def deaf(guest: Hostile) -> None:
        await trio.sleep_forever()

    async with hostile_guest(tmp_path, Hostile(deaf, greets=False)) as guest:
        with trio.fail_after(20), pytest.raises(GuestUnreachable, match="no program answers"):
            await guest.start_session(ExecRequest(command=["true"]), "local")


async def half_done(guest: Hostile) -> None:
    """Says that whatever is opened is open, and no more."""
    number = await guest.until_open()
    while True:
        await guest.send(say(number, op="opened"))
        number = (await guest.next_frame()).stream


async def test_nobody_waits_for_a_guest_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "OPEN_WITHIN", 0.2)
    monkeypatch.setattr(operations, "END_WITHIN", 0.1)
    monkeypatch.setattr(operations, "CALL_WITHIN", 0.2)
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        for name, behave in (("silent", silent), ("half", half_done)):
            made = await vms.create_vm(spec(name))
            hypervisor.serve_channel(made.id, Hostile(behave).run)
            await vms.start_vm(name)
        guests = guests_of(node)
        with within(10):
            with pytest.raises(GuestUnreachable, match=r"did not start the command within 0\.2 s") as refused:
                await guests.exec_vm("silent", ExecRequest(command=["true"]))
            assert (await guests.get_session("silent", refused.value.details["session"])).state == "running"
            with pytest.raises(GuestUnreachable, match="does not say how the command ended"):
                await guests.exec_vm("half", ExecRequest(command=["true"], timeout=1))
            with pytest.raises(GuestUnreachable, match=r"did not answer within 0\.2 s"):
                await guests.list_files("half", "/")


async def test_an_upload_of_which_the_guest_has_more_than_there_is(tmp_path: Path) -> None:
    async def liar(guest: Hostile) -> None:
        await guest.send(say(await guest.until_open(), op="opened", received=1 << 40))
        await guest.receive()

    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec())
        hypervisor.serve_channel(made.id, Hostile(liar).run)
        await vms.start_vm("one")
        for request in (WriteFile(path=b"x"), WriteFile(path=b"x", size=10, upload="ab" * 8), ReadFile(path=b"x")):
            with within(10), pytest.raises(GuestRefused, match="of what was never sent"):
                async with node.guest_stream(LOCAL_ADMIN, "one", request):
                    pass
