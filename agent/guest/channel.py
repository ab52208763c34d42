"""The guest channel of one running VM: connected for as long as it runs, and again after each cut.

One task reads and one writes; an idle channel waits in both and uses no CPU. What the guest sends is bounded by
protocols/guest_channel.py and by the windows of the streams; a guest that breaks the protocol is cut off, and dialled
again with a backoff.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import structlog
import trio

from ...protocols.errors import GuestUnreachable, TwinshareError, Unsupported
from ...protocols.guest_channel import (
    ACK,
    DATA,
    MAX_STREAMS,
    MESSAGE,
    SUMMED,
    WINDOW,
    DoneReply,
    EndReply,
    Frame,
    FrameReader,
    GuestMisbehaved,
    OpenedReply,
    ProgramRestarted,
    Reply,
    ReportMessage,
    ResumedReply,
    message,
    read_reply,
)
from ..background import open_background
from ..backoff import Backoff
from .allowance import PER_STREAM, Allowance
from .greeting import READ_SIZE, synchronize
from .silence import IsOpen, SilenceWatch
from .stream import ChannelStream

log = structlog.get_logger(__name__)

BATCH = 256 << 10
"""Bytes that are handed to the socket at once."""
RETRY_FIRST, RETRY_LONGEST = 0.05, 10.0
ENDED = (
    "the program that served the guest channel of VM '{vm}' has ended, and with it its sessions; start it again in the"
    " guest as root, by `systemctl restart twinshare-guest` or as docs/guests.md says, or restart the VM"
)
DROP: dict[str, object] = {"op": "drop"}

Dial = Callable[[], Awaitable[trio.SocketStream]]


@dataclass(frozen=True, slots=True)
class ChannelPort:
    """The hypervisor's end of a guest channel: how to connect, and whether a process in the guest has it open."""

    dial: Dial
    is_open: IsOpen


class GuestChannel:
    """The channel of one VM. `run` keeps it connected; `on_report` is called with what the guest says about itself."""

    def __init__(self, vm: str, port: ChannelPort, on_report: Callable[[ReportMessage], None]) -> None:
        self.vm = vm
        self._port, self._on_report = port, on_report
        self._streams: dict[int, ChannelStream] = {}
        self._drops: list[int] = []
        self._allowance = Allowance()
        self._next_number = 1
        self._silence = SilenceWatch(port.is_open, lambda: bool(self._streams), self._program_ended)
        self._connection = trio.CancelScope()
        self._work = trio.Event()
        self._ready = trio.Event()
        self.instance: bytes | None = None
        """The program in the guest that answered last."""
        self.unsupported: str | None = None
        """Why there is no channel, where that is known."""
        self.over: TwinshareError | None = None

    @property
    def ready(self) -> bool:
        """Whether a program in the guest answers."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Wait until a program in the guest answers. Raises: GuestUnreachable, what ended the channel."""
        while not self._ready.is_set():
            if self.over is not None:
                raise self.over
            if self.unsupported is not None:
                raise GuestUnreachable(self.unsupported)
            await self._ready.wait()

    def open(self, request: dict[str, object], window: int = WINDOW) -> ChannelStream:
        """Open a stream. Raises: GuestUnreachable when there are too many."""
        return self.add(ChannelStream(self.new_number(), request, self.flush, window=window))

    def new_number(self) -> int:
        """A number that no stream of this channel has had. Raises: GuestUnreachable when there are too many."""
        if len(self._streams) >= MAX_STREAMS:
            raise GuestUnreachable(f"the guest serves {MAX_STREAMS} streams at once")
        number, self._next_number = self._next_number, self._next_number % ((1 << 32) - 1) + 1
        return number

    def add(self, stream: ChannelStream) -> ChannelStream:
        """Take a stream whose number is new, or was given by a former life of the agent."""
        if self.over is not None:
            raise self.over
        self._streams[stream.number] = stream
        self._next_number = max(self._next_number, stream.number + 1)
        self._allowance.earn(PER_STREAM)
        self._silence.stream_added()
        self.flush()
        return stream

    def drop(self, stream: ChannelStream) -> None:
        """Forget a stream; what it runs in the guest ends."""
        if self._streams.pop(stream.number, None) is not None:
            self._drops.append(stream.number)
            self.flush()

    def flush(self) -> None:
        self._work.set()

    # --- the connection ---

    async def run(self) -> None:
        """Dial, serve, dial again; until it is cancelled or the VM has no channel."""
        async with open_background() as nursery:
            nursery.start_soon(self._silence.run)
            await self._keep_connected()

    async def _keep_connected(self) -> None:
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST, steady=5.0)
        while True:
            began = trio.current_time()
            try:
                async with await self._port.dial() as stream:
                    await self._serve(stream)
            except Unsupported as error:
                self.unsupported = error.message
                self._wake_waiters()
                return
            except (TwinshareError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                why = str(error)
            except ProgramRestarted as error:
                why = str(error)
            except GuestMisbehaved as error:
                why = str(error)
                log.info("a guest breaks the protocol of its channel", vm=self.vm, why=why)
            else:
                why = "the other side closed it"
            self._ready = trio.Event() if self._ready.is_set() else self._ready
            log.debug("a guest channel was cut", vm=self.vm, why=why)
            await trio.sleep(backoff.next(trio.current_time() - began))

    def end(self, why: TwinshareError) -> None:
        """The VM has stopped: every stream ends with it."""
        self.over = why
        self._fail_streams(why)
        self._wake_waiters()

    def _fail_streams(self, why: TwinshareError) -> None:
        for stream in self._streams.values():
            stream.fail(why)
        self._streams.clear()

    def _wake_waiters(self) -> None:
        ready, self._ready = self._ready, trio.Event()
        ready.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Raises: GuestMisbehaved, trio.BrokenResourceError."""
        rest = await synchronize(stream)
        reader = FrameReader()
        rows = [[one.number, one.arrived, one.acknowledged + one.window] for one in self._streams.values()]
        self._drops.clear()
        await stream.send_all(message(0, {"op": "resume", "streams": rows}))
        async with open_background() as nursery:
            self._connection = nursery.cancel_scope
            connection = _Connection({row[0] for row in rows})
            nursery.start_soon(self._write, stream, connection, nursery.cancel_scope)
            data = rest or await stream.receive_some(READ_SIZE)
            while data:
                self._silence.heard()
                for one in reader.feed(data):
                    self._take(one, connection)
                data = await stream.receive_some(READ_SIZE)

    async def _write(self, stream: trio.SocketStream, connection: _Connection, scope: trio.CancelScope) -> None:
        await connection.answered.wait()
        try:
            while True:
                self._work = trio.Event()
                batch = bytearray()
                for data in self._frames():
                    batch += data
                    if len(batch) >= BATCH:
                        await self._send(stream, batch)
                        batch = bytearray()
                if batch:
                    await self._send(stream, batch)
                await self._work.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()

    def _program_ended(self) -> None:
        """End the streams, and the connection."""
        log.info("the program in a guest has ended", vm=self.vm)
        self._fail_streams(GuestUnreachable(ENDED.format(vm=self.vm), vm=self.vm))
        self._connection.cancel()

    async def _send(self, stream: trio.SocketStream, batch: bytearray) -> None:
        self._allowance.earn(len(batch))
        await stream.send_all(batch)

    def _frames(self) -> Iterator[bytes]:
        """What all streams have to send now, a piece of each in turn."""
        while self._drops:
            yield message(self._drops.pop(), DROP)
        turns = [stream.frames() for stream in self._streams.values()]
        for stream in self._streams.values():
            stream.instance = stream.instance or self.instance
        while turns:
            for turn in list(turns):
                data = next(turn, None)
                if data is None:
                    turns.remove(turn)
                else:
                    yield data

    # --- what arrives ---

    def _take(self, one: Frame, connection: _Connection) -> None:
        """Raises: GuestMisbehaved."""
        stream = self._streams.get(one.stream)
        if not connection.answered.is_set() and one.kind != MESSAGE:
            raise GuestMisbehaved("content comes before the answer to `resume`")
        if stream is not None and one.kind == DATA and stream.on_data(one.body):
            return
        if stream is not None and one.kind == SUMMED and stream.on_summed(one.body):
            return
        self._allowance.spend(len(one.body))
        if one.kind == MESSAGE:
            self._take_reply(read_reply(one.body), stream, connection)
        elif stream is not None and one.kind == ACK:
            stream.on_ack(one.body)

    def _take_reply(self, reply: Reply, stream: ChannelStream | None, connection: _Connection) -> None:
        """Raises: GuestMisbehaved."""
        match reply:
            case ResumedReply():
                self._resume(reply, connection)
            case ReportMessage():
                self._on_report(reply)
            case OpenedReply() if stream is not None:
                stream.on_opened(reply)
            case EndReply() if stream is not None:
                stream.on_end(reply)
            case DoneReply() if stream is not None:
                stream.on_done(reply)
            case _:
                pass  # of a stream that was dropped here meanwhile

    def _resume(self, reply: ResumedReply, connection: _Connection) -> None:
        """Every stream goes on where both sides are, or ends because the program that had it is gone."""
        if connection.answered.is_set():
            raise GuestMisbehaved("a second answer to `resume`")
        self.instance = reply.instance
        known = {number: (received, controls) for number, received, controls in reply.streams}
        for number, stream in list(self._streams.items()):
            other = stream.instance not in (None, reply.instance)
            if number in connection.offered and (other or not stream.rewind(known.get(number))):
                del self._streams[number]
                stream.fail(GuestUnreachable("the guest, or the program in it that serves this, was restarted"))
        connection.answered.set()
        self._ready.set()
        self.flush()


class _Connection:
    """What is known of one connection: the streams that it began with, and whether the program has answered."""

    def __init__(self, offered: set[int]) -> None:
        self.offered = offered
        self.answered = trio.Event()
