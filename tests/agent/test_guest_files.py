"""Files in guests: written whole or not at all, read at offsets, listed, made and removed."""

from __future__ import annotations

import errno
import hashlib
import random
from pathlib import Path

import pytest
import trio

from tests.agent.test_guest_sessions import running
from twinshare.agent.guest.access import send_input
from twinshare.agent.guest.stream import ChannelStream
from twinshare.agent.guest.vm_guest import VmGuest
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.errors import FileNotFound, GuestRefused
from twinshare.protocols.guest import DirectoryRequest, FileKind
from twinshare.protocols.guest_channel import EndReply
from twinshare.protocols.guest_stream import (
    DialPort,
    Finished,
    Input,
    InputEnd,
    Output,
    OutputEnd,
    ReadFile,
    WriteFile,
)


async def write(node: Node, request: WriteFile, data: bytes) -> Finished:
    with trio.fail_after(60):
        async with node.guest_stream(LOCAL_ADMIN, "one", request) as stream:
            await stream.send(Input(data=data[stream.opened.input_offset :]))
            await stream.send(InputEnd())
            done = await stream.receive()
            assert isinstance(done, Finished)
            return done


async def read(node: Node, request: ReadFile) -> tuple[bytes, Finished]:
    whole = b""
    with trio.fail_after(60):
        async with node.guest_stream(LOCAL_ADMIN, "one", request) as stream:
            while not isinstance(message := await stream.receive(), Finished):
                assert isinstance(message, Output)
                assert message.offset == request.offset + len(whole)
                whole += message.data
    return whole, message


async def test_a_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(5_000_000)
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    async with running(tmp_path) as (node, _, _, _):
        done = await write(node, WriteFile(path=b"a/../big", size=len(data), mode=0o640, modified=1e9), data)
        assert done.digest == digest
        assert done.file is not None
        assert (done.file.size, done.file.mode, done.file.modified.timestamp()) == (len(data), 0o640, 1e9)
        assert (await read(node, ReadFile(path=b"big")))[0] == data
        part, done = await read(node, ReadFile(path=b"big", offset=1_000_000, length=70_000))
        assert part == data[1_000_000:1_070_000]
        assert done.digest == hashlib.blake2b(part, digest_size=32).hexdigest()


async def test_an_older_program_or_agent_hashes_the_content_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, asked = VmGuest.open, []

    async def open_as_before(self: VmGuest, request: dict[str, object], window: int) -> ChannelStream:
        asked.append(request.pop("summed"))
        return await opened(self, request, window)

    monkeypatch.setattr(VmGuest, "open", open_as_before)
    data = random.Random(4).randbytes(1_000_000)
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    async with running(tmp_path) as (node, _, _, _):
        assert (await write(node, WriteFile(path=b"big", size=len(data)), data)).digest == digest
        content, done = await read(node, ReadFile(path=b"big"))
        assert (content, done.digest) == (data, digest)
    assert asked == [True, True]


async def test_an_upload_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(1_000_000)
    request = WriteFile(path=b"file", size=len(data), upload="ab" * 8)
    async with running(tmp_path) as (node, guests, _, _):
        async with node.guest_stream(LOCAL_ADMIN, "one", request) as stream:
            await stream.send(Input(data=data[:700_000]))
        assert [one.name for one in (await guests.list_files("one")).files if not one.name.startswith(".")] == []
        async with node.guest_stream(LOCAL_ADMIN, "one", request) as stream:
            assert 0 < stream.opened.input_offset <= 700_000
        done = await write(node, request, data)
        assert done.digest == hashlib.blake2b(data, digest_size=32).hexdigest()
        assert (await read(node, ReadFile(path=b"file")))[0] == data


async def test_a_file_that_is_not_whole_leaves_the_former_one(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        await write(node, WriteFile(path=b"file"), b"former")
        with pytest.raises(GuestRefused):
            await write(node, WriteFile(path=b"file", size=100), b"short")
        async with node.guest_stream(LOCAL_ADMIN, "one", WriteFile(path=b"file")) as stream:
            await stream.send(Input(data=b"cut off"))
        assert (await read(node, ReadFile(path=b"file")))[0] == b"former"
        with trio.fail_after(60):
            while len((await guests.list_files("one")).files) > 2:  # the file and the program
                await trio.sleep(0.01)


async def test_what_is_refused_says_why(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        with pytest.raises(FileNotFound, match="none: No such file"):
            await read(node, ReadFile(path=b"none"))
        with pytest.raises(GuestRefused, match="directory"):
            await read(node, ReadFile(path=b"/"))
        with pytest.raises(GuestRefused):
            await read(node, ReadFile(path=b"/dev/zero"))
        with pytest.raises(GuestRefused):
            await write(node, WriteFile(path=b"/"), b"")
        with pytest.raises(FileNotFound):
            await guests.list_files("one", path="/none")


def make_files(root: Path, names: list[bytes]) -> Path:
    """Empty files in the guest's folder `d/e`."""
    folder = next(root.rglob("guest/d/e"))
    for name in names:
        (folder / name.decode(errors="surrogateescape")).write_bytes(b"")
    return folder


async def test_many_files_with_any_name_are_listed_in_pages(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        made = await guests.make_directory("one", DirectoryRequest(path="d/e", parents=True, mode=0o700))
        assert (made.kind, made.mode) == (FileKind.DIRECTORY, 0o700)
        names = sorted([*(b"n%05d" % number for number in range(2500)), b"\xff\xfe", b"a\x1b[31mb"])
        folder = make_files(tmp_path, names)
        found, after = [], None
        while True:
            page = await guests.list_files("one", path="d/e", after=after)
            found += [one.name_bytes for one in page.files]
            after = page.next
            if after is None:
                break
        assert found == names
        with pytest.raises(GuestRefused, match="not empty"):
            await guests.remove_file("one", path="d")
        await guests.remove_file("one", path="d", recursive=True)
        assert not await trio.Path(folder).exists()


async def test_a_port_on_the_guests_loopback_is_dialled(tmp_path: Path) -> None:
    async def upper(stream: trio.SocketStream) -> None:
        whole = b""
        async for data in stream:
            whole += data
        await stream.send_all(whole.upper())

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with running(tmp_path) as (node, _, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, upper, listeners)
        with trio.fail_after(20):
            async with node.guest_stream(LOCAL_ADMIN, "one", DialPort(port=port)) as stream:
                await stream.send(Input(data=b"words"))
                await stream.send(InputEnd())
                assert await stream.receive() == Output(offset=0, data=b"WORDS")
                assert await stream.receive() == OutputEnd()
                assert await stream.receive() == Finished()
        nursery.cancel_scope.cancel()
        with pytest.raises(GuestRefused, match="nothing in the guest listens"):
            async with node.guest_stream(LOCAL_ADMIN, "one", DialPort(port=1)):
                pass


async def test_content_that_comes_after_the_end_is_left(tmp_path: Path) -> None:
    """When the guest's disk is full, the error says that, and not that content before this is missing."""
    stream = ChannelStream(1, {"kind": "write"}, lambda: None)
    stream.on_end(EndReply(offset=0, errno=errno.ENOSPC))
    with trio.fail_after(60):
        await send_input(stream, Input(data=b"later", offset=1000))
