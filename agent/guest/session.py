"""One session at its owner's node: what is kept of it on disk, and who reads it.

What is known of a session is written before its command is started, and its output before the guest forgets it: a
killed agent goes on with it where it was.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from ...protocols.errors import InsufficientResources, TwinshareError
from ...protocols.guest import GuestSession, SessionState
from ...protocols.guest_channel import EndReply
from ..backoff import Backoff
from ..files import atomic_write, discard, disk_errors_named
from .output_log import KEPT, OutputLog, open_output_log
from .stream import ChannelStream

log = structlog.get_logger(__name__)

AHEAD = KEPT // 2
"""Bytes by which a command's output may be ahead of its slowest reader; the other half is for one who comes back."""
HOLD = 600.0
"""Seconds for which a command waits for a reader who has gone; then its oldest output gives way."""
BATCH = 256 << 10
SHOWN_COMMAND = 1024


class SessionRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is kept of a session in a file. Times in seconds since 1970.

    `request` opens the stream `number` of the guest channel; it is kept until the guest has answered. `instance` is the
    program in the guest that is asked: another one, after a reboot, is not asked again.
    """

    id: str
    number: int
    instance: bytes
    owner: str
    command: list[str]
    started_at: float
    request: bytes | None = None
    user: str = ""
    terminal: bool = False
    detached: bool = False
    state: SessionState = SessionState.RUNNING
    ended_at: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    input_offset: int = 0
    reason: str | None = None


class Reader:
    """Where one attached client is in the output."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


class HostedSession:
    """A session on this node. `stream` is None once it has ended."""

    def __init__(self, directory: Path, record: SessionRecord, output: OutputLog) -> None:
        self.directory, self.record, self.output = directory, record, output
        self.stream: ChannelStream | None = None
        self.input_turn = trio.Lock()
        """Held by the client that sends input: a message of it is whole in the guest's input."""
        self.input_ends: dict[str, int] = {}
        """The end of the input that each of the latest writers knows: what follows is not its own."""
        self._readers: set[Reader] = set()
        self._reader_left = 0.0  # sessions are loaded in a thread, which has no clock; `pump` sets it
        self._consumed = output.start
        self._changed = trio.Event()
        self._files = threading.Lock()
        self._removed = False

    @property
    def ended(self) -> bool:
        return self.record.state is not SessionState.RUNNING

    def view(self, vm: str) -> GuestSession:
        record = self.record
        return GuestSession(
            id=record.id,
            vm=vm,
            command=record.command,
            state=record.state,
            started_at=datetime.fromtimestamp(record.started_at, UTC),
            owner=record.owner,
            user=record.user,
            terminal=record.terminal,
            ended_at=None if record.ended_at is None else datetime.fromtimestamp(record.ended_at, UTC),
            exit_code=record.exit_code,
            signal=record.signal,
            first_offset=self.output.start,
            offset=self.output.end,
            input_offset=self.input_received,
            reason=record.reason,
        )

    @property
    def input_received(self) -> int:
        """The bytes of input that the guest has."""
        return self.record.input_offset if self.stream is None else self.stream.input_received

    # --- its files ---

    def save(self) -> None:
        """Blocking. Raises: InsufficientResources."""
        with self._files, disk_errors_named("a session"):
            if not self._removed:
                atomic_write(self._path, msgspec.msgpack.encode(self.record), durable=False)

    async def _save_again(self) -> None:
        """On a full disk the former state stays: the guest is asked again then, and answers the same."""
        try:
            await trio.to_thread.run_sync(self.save)
        except InsufficientResources as error:
            log.warning("the state of a session is not written down", session=self.record.id, error=error.message)

    def remove(self) -> None:
        """Remove its files; what another thread is about to write is not written any more. Blocking."""
        with self._files:
            self._removed = True
            discard(self._path)
            self.output.remove()

    def _write(self, pieces: list[tuple[int, bytes]]) -> None:
        """Blocking. Raises: InsufficientResources."""
        with self._files:
            if not self._removed:
                self.output.append(pieces)

    @property
    def _path(self) -> Path:
        return self.directory / f"{self.record.id}.session"

    # --- from the guest to the disk ---

    def connect(self, flush: Callable[[], None]) -> ChannelStream:
        """The stream of the guest channel on which the session goes on."""
        record = self.record
        request = None if record.request is None else msgspec.msgpack.decode(record.request, type=dict[str, Any])
        self.stream = ChannelStream(record.number, request, flush, self.output.end, self._wake)
        self.stream.instance = record.instance
        return self.stream

    async def pump(self, stream: ChannelStream) -> None:
        """Write the output down as it comes, until the end, which is written down as well.

        Raises: what ended the stream; nothing is written then.
        """
        self._reader_left = trio.current_time()
        await stream.wait_opened()
        if self.record.request is not None:
            self.record.request = None
            self._wake()
            await self._save_again()
        while (piece := await stream.receive()) is not None:
            pieces = [piece, *stream.take_arrived(BATCH)]
            await self._wait_for_readers()
            await self._append([(channel, data) for _, channel, data in pieces])
            stream.acknowledge(self.output.end)
            self._wake()
        if stream.end is not None:
            await self.finish(stream.end)

    async def _append(self, pieces: list[tuple[int, bytes]]) -> None:
        """A full disk makes the command wait."""
        backoff = Backoff(0.5, 10.0)
        while True:
            try:
                return await trio.to_thread.run_sync(self._write, pieces)
            except InsufficientResources as error:
                if not backoff.failures:
                    log.warning("a session waits for the disk", session=self.record.id, error=error.message)
            await trio.sleep(backoff.next())

    async def _wait_for_readers(self) -> None:
        """Nothing that an attached client has not read gives way, nor for a while what one who has gone may want."""
        while True:
            if self._readers:
                behind, until = min(reader.offset for reader in self._readers), trio.current_time() + HOLD
            elif self.record.detached:
                return
            else:
                behind, until = self._consumed, self._reader_left + HOLD
            if self.output.end - behind < AHEAD or trio.current_time() >= until:
                return
            changed = self._changed
            with trio.move_on_at(until):
                await changed.wait()

    async def complete(self, pieces: Sequence[tuple[int, bytes]], end: EndReply) -> None:
        """Write down all output and the end of a command that has no stream."""
        await self._append(list(pieces))
        await self.finish(end)

    async def finish(self, end: EndReply) -> None:
        record = self.record
        if self.ended:
            return
        record.exit_code, record.state = end.code, SessionState.ENDED
        if end.errno is not None:
            record.exit_code, record.reason = 126, end.error or "the guest could not start it"
        if end.signal is not None:
            record.signal = _signal_name(end.signal)
        await self._close()

    async def lose(self, why: TwinshareError) -> None:
        """Nobody will know how it ended."""
        if self.ended:
            return
        self.record.state, self.record.reason = SessionState.LOST, why.message
        await self._close()

    async def _close(self) -> None:
        self.record.ended_at, self.record.request = time.time(), None
        if self.stream is not None:
            self.record.input_offset, self.stream = self.stream.input_received, None
        # Nobody waits for the file: an agent that is killed before it is written asks the guest again.
        self._wake()
        await self._save_again()

    # --- readers ---

    @asynccontextmanager
    async def reading(self, offset: int) -> AsyncIterator[Reader]:
        """Read from `offset` on, or from the first byte that is kept, until the block is left."""
        reader = Reader(max(min(offset, self.output.end), self.output.start))
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self._consumed = max(self._consumed, reader.offset)
            self._reader_left = trio.current_time()
            self._wake()

    async def wait_started(self) -> None:
        """Wait until the guest has answered that it runs, or it has ended."""
        while self.record.request is not None and not self.ended:
            changed = self._changed
            await changed.wait()

    async def wait_for_output(self, reader: Reader, input_wanted: int | None = None) -> None:
        """Wait until there is output for a reader, or its end, or the guest has input up to `input_wanted`."""
        while reader.offset >= self.output.end and not self.ended:
            if input_wanted is not None and self.input_received >= input_wanted:
                return
            changed = self._changed
            await changed.wait()

    async def read(self, reader: Reader, size: int) -> list[tuple[int, int, bytes]]:
        """The next output of a reader, waiting for it; nothing at the end of all."""
        await self.wait_for_output(reader)
        if reader.offset >= self.output.end:
            return []
        pieces = await trio.to_thread.run_sync(self.output.read, reader.offset, size)
        if pieces:
            reader.offset = pieces[-1][0] + len(pieces[-1][2])
            self._wake()
        return pieces

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def shown_command(argv: list[bytes]) -> list[str]:
    """The beginning of a command line, as it is shown in lists."""
    left, shown = SHOWN_COMMAND, []
    for word in argv:
        text = word.decode(errors="replace")
        shown.append(text if len(text) <= left else text[:left] + "…")
        left -= len(text)
        if left <= 0:
            break
    return shown


def load_sessions(directory: Path) -> list[HostedSession]:
    """The sessions that a former life of the agent has left. Blocking; a file that is none is removed."""
    found = []
    for path in sorted(directory.glob("*.session")):
        try:
            record = msgspec.msgpack.decode(path.read_bytes(), type=SessionRecord)
        except (msgspec.MsgspecError, OSError):
            discard(path)
            continue
        found.append(HostedSession(directory, record, open_output_log(directory, record.id)))
    return found
