"""A session through a thousand cuts of its channel, and through as many deaths of the agent: each byte arrives once."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.agent.guest_lab import command, open_guest, open_lab, random_cuts
from twinshare.agent.files import atomic_write
from twinshare.agent.guest import channel, output_log
from twinshare.agent.guest import session as session_module
from twinshare.agent.guest.session import HostedSession, load_sessions
from twinshare.protocols.errors import WrongState
from twinshare.protocols.guest import SessionState
from twinshare.protocols.guest_channel import CONTENT_WINDOW

CUTS = 1000
LONGEST = 200_000
"""Bytes of a connection at most; the greeting has 65 581."""


@pytest.fixture(autouse=True)
def _dial_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "RETRY_FIRST", 0.0005)
    monkeypatch.setattr(channel, "RETRY_LONGEST", 0.001)


async def test_a_thousand_cuts_at_any_byte_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    sent, heard = hashlib.sha256(), hashlib.sha256()
    sizes = {"sent": 0, "heard": 0}
    async with (
        open_lab(tmp_path, random_cuts(chance, LONGEST)) as cutter,
        open_guest(tmp_path / "sessions", cutter) as guest,
    ):
        session = await guest.start_session(command("cat"), "local")

        async def write() -> None:
            assert session.stream is not None
            while cutter.cuts < CUTS:
                data = chance.randbytes(chance.randrange(1, 100_000))
                sent.update(data)
                sizes["sent"] += len(data)
                await session.stream.send(data)
            session.stream.close_input()

        async def read() -> None:
            async with session.reading(0) as reader:
                while pieces := await session.read(reader, 1 << 18):
                    for offset, _, data in pieces:
                        assert offset == sizes["heard"]
                        heard.update(data)
                        sizes["heard"] += len(data)

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(read)
        assert cutter.cuts >= CUTS
        assert sizes["heard"] == sizes["sent"] > CUTS * 1000
        assert heard.digest() == sent.digest()
        assert (session.record.state, session.record.exit_code) == (SessionState.ENDED, 0)


class Killed(BaseException):
    """The agent is killed here."""


async def test_a_file_that_is_copied_through_cuts_has_each_byte_once(tmp_path: Path) -> None:
    chance = random.Random(3)
    content = chance.randbytes(3_000_001)
    request: dict[str, object] = {"path": b"file", "offset": 0, "length": None, "size": len(content), "mode": None,
                                  "modified": None, "user": "", "upload": "", "summed": True}  # fmt: skip
    async with (
        open_lab(tmp_path, random_cuts(chance, LONGEST * 2)) as cutter,
        open_guest(tmp_path / "sessions", cutter) as guest,
    ):
        with trio.fail_after(120):
            stream = await guest.open({**request, "kind": "write"}, CONTENT_WINDOW)
            for at in range(0, len(content), 50_000):
                await stream.send(content[at : at + 50_000])
            stream.close_input()
            assert await stream.receive() is None
            assert (stream.summed, stream.end and stream.end.errno) == (True, None)
            cuts, heard = cutter.cuts, bytearray()
            stream = await guest.open({**request, "kind": "read"}, CONTENT_WINDOW)
            while (piece := await stream.receive()) is not None:
                assert piece[0] == len(heard)
                heard += piece[2]
                stream.acknowledge(len(heard))
            assert (stream.summed, stream.end and stream.end.errno) == (True, None)
        assert cuts > 5
        assert cutter.cuts > cuts + 5
        assert heard == content


class Killer:
    """Ends the agent at any byte of what it writes: a part of it is in the file then, and nothing is tidied up."""

    def __init__(self, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self._chance, self._left = chance, 0
        self.kills = 0
        self._append, self._replace = output_log._write, atomic_write
        monkeypatch.setattr(output_log, "_write", self.append)
        monkeypatch.setattr(session_module, "atomic_write", self.replace)

    def arm(self) -> None:
        """A life of so many writes."""
        self._left = self._chance.randrange(1, 5)

    def _dies(self) -> bool:
        self._left -= 1
        self.kills += self._left == 0
        return self._left == 0

    def append(self, fd: int, content: bytes, at: int) -> None:
        if self._dies():
            os.pwrite(fd, content[: self._chance.randrange(len(content) + 1)], at)
            raise Killed
        self._append(fd, content, at)

    def replace(self, path: Path, content: bytes, *, durable: bool) -> None:
        if not self._dies():
            return self._replace(path, content, durable=durable)
        if self._chance.random() < 0.5:
            self._replace(path, content, durable=durable)
        else:
            path.with_name(f".{path.name}.new").write_bytes(content[: self._chance.randrange(len(content))])
        raise Killed


async def test_an_agent_killed_at_any_byte_that_it_writes_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(2)
    content = chance.randbytes(8 << 20)
    directory, heard = tmp_path / "sessions", bytearray()
    async with open_lab(tmp_path) as cutter:
        async with open_guest(directory, cutter) as guest:
            id = (await guest.start_session(command("cat"), "local")).record.id
        killer = Killer(chance, monkeypatch)
        # One frame of output, 32 KiB, is written at a time: 256 writes, at most four in a life, however slow this is.
        monkeypatch.setattr(session_module, "BATCH", 0)

        async def write(session: HostedSession) -> None:
            if (stream := session.stream) is not None:  # the session lets go of it when the command ends
                await stream.wait_synced()
                await stream.send(content[stream.input_received :])
                stream.close_input()

        async def read(session: HostedSession, done: Callable[[], None]) -> None:
            async with session.reading(len(heard)) as reader:
                while pieces := await session.read(reader, 1 << 18):
                    for offset, _, data in pieces:
                        assert offset == len(heard)
                        heard.extend(data)
            done()

        while len(heard) < len(content) or load_state(directory) is SessionState.RUNNING:
            killer.arm()
            with trio.fail_after(60), killed():
                async with open_guest(directory, cutter) as guest, trio.open_nursery() as nursery:
                    session = guest.session(id)
                    nursery.start_soon(write, session)
                    nursery.start_soon(read, session, nursery.cancel_scope.cancel)
    assert killer.kills > 50
    assert hashlib.sha256(heard).digest() == hashlib.sha256(content).digest()
    assert (session.record.state, session.record.exit_code) == (SessionState.ENDED, 0)


def load_state(directory: Path) -> SessionState:
    [session] = load_sessions(directory)
    return session.record.state


@contextmanager
def killed() -> Iterator[None]:
    """The block may be left by a kill."""
    try:
        yield
    except BaseExceptionGroup as group:
        died, other = group.split((Killed, WrongState))
        if other is not None or died is None or not died.subgroup(Killed):
            raise
