"""One stream of a guest channel, the host's end: it survives cuts, and each byte of either direction arrives once.

No I/O: the channel asks it for frames and hands it what arrives; tasks wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from zlib import crc32

import trio

from ...protocols.errors import TwinshareError
from ...protocols.guest_channel import (
    ACK,
    ACK_BODY,
    DATA,
    DATA_HEAD,
    END,
    ERR,
    OUT,
    PIECE,
    SUMMED_HEAD,
    WINDOW,
    DoneReply,
    EndReply,
    GuestMisbehaved,
    OpenedReply,
    frame,
    message,
    summed_frame,
)
from .input_sums import InputSums

MAX_PIECES = 8192
"""Pieces of output that wait for their reader, at most; the program itself waits when it has half as many."""


class ChannelStream:
    """`request` opens it; without one it was opened by a former life of the agent, which has `received` of its output.

    `flush` is called when there is something to send, `on_input_taken` when the guest has more of the input. `window`
    are the bytes of either direction that may be under way.
    """

    def __init__(
        self,
        number: int,
        request: dict[str, object] | None,
        flush: Callable[[], None],
        received: int = 0,
        on_input_taken: Callable[[], None] = lambda: None,
        window: int = WINDOW,
    ) -> None:
        self.number, self.window = number, window
        self.opened = None if request is not None else OpenedReply()
        self.instance: bytes | None = None
        """The program that was asked to open it: another one does not know it."""
        self.end: EndReply | None = None
        self.error: TwinshareError | None = None
        self._request, self._flush, self._on_input_taken = request, flush, on_input_taken
        self._changed = trio.Event()
        # Output: what has arrived and waits for its reader, and what the reader is done with.
        self._pieces: deque[tuple[int, int, bytes]] = deque()
        self.arrived = self.acknowledged = received
        self._arrived_sum = 0
        self._acknowledged_there = received
        self._acknowledge_after = 1 if window <= WINDOW else WINDOW // 4
        self._output_closed = self._close_read = False
        self._ack_due = True
        # Input: what the guest does not have yet, and from which offset on.
        self._input = bytearray()
        self._input_start = self._input_sent = self._input_limit = 0
        self._input_closed = self._close_sent = False
        self._sums: InputSums | None = None
        self._controls: deque[tuple[int, dict[str, object]]] = deque()
        self._controls_sent = 0
        self._open_sent = False
        self._next_control = 1
        self.synced = request is not None
        """Whether the offsets of the input are known: after a restart of the agent once the guest has said them."""

    # --- for tasks ---

    async def wait_opened(self) -> OpenedReply:
        """Wait for the guest's answer; an end without one is an answer too. Raises: what ended the stream."""
        while self.opened is None:
            if self.end is not None:
                return OpenedReply()
            await self._wait()
        return self.opened

    async def wait_synced(self) -> None:
        """Wait until the offsets of the input are known. Raises: what ended the stream."""
        while not self.synced and self.end is None:
            await self._wait()

    async def receive(self) -> tuple[int, int, bytes] | None:
        """The next piece of output: offset, channel, bytes; the channel is `END` when the guest closes its side.

        None at the end of all. Raises: what ended the stream.
        """
        while True:
            if self._pieces:
                return self._pieces.popleft()
            if self._output_closed and not self._close_read:
                self._close_read = True
                return self.arrived, END, b""
            if self.end is not None and self.arrived >= self.end.offset:
                return None
            await self._wait()

    def take_arrived(self, size: int) -> list[tuple[int, int, bytes]]:
        """The output that waits here, about `size` bytes of it, without waiting for more."""
        found = []
        while self._pieces and size > 0:
            found.append(self._pieces.popleft())
            size -= len(found[-1][2])
        return found

    def acknowledge(self, offset: int) -> None:
        """The reader is done with the output before `offset`: the guest forgets it, and may send more."""
        if offset > self.acknowledged:
            self.acknowledged = offset
            if offset - self._acknowledged_there >= self._acknowledge_after:
                self._ack_due = True
                self._flush()

    @property
    def input_offset(self) -> int:
        """The bytes of input that were accepted here."""
        return self._input_start + len(self._input)

    @property
    def input_received(self) -> int:
        """The bytes of input that the guest has."""
        return self._input_start

    @property
    def summed(self) -> bool:
        """Whether the content comes and goes with its CRC-32."""
        return self.opened is not None and self.opened.summed is not None

    async def send(self, data: bytes) -> None:
        """Send input, waiting while the guest does not take it. Raises: what ended the stream."""
        while data or not self.synced:
            self._raise_error()
            if self.end is not None:
                return  # nobody reads it any more
            room = self.window - len(self._input)
            if room > 0 and self.synced:
                self._input += data[:room]
                data = data[room:]
                self._flush()
            else:
                await self._wait()

    def close_input(self) -> None:
        self._input_closed = True
        self._flush()

    def control(self, op: str, **fields: object) -> None:
        """A signal or a window size: it overtakes input, and is carried out once."""
        if len(self._controls) >= 64:
            self._controls.popleft()
        self._controls.append((self._next_control, {"op": op, **fields}))
        self._next_control += 1
        self._flush()

    def fail(self, error: TwinshareError) -> None:
        """End the stream here; whoever waits for it gets the error."""
        if self.error is None:
            self.error = error
            self._wake()

    async def _wait(self) -> None:
        self._raise_error()
        changed = self._changed
        await changed.wait()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    # --- for the channel ---

    def rewind(self, known: tuple[int, int] | None) -> bool:
        """A new connection to the same program: `known` are the input that it has and the last control it carried out.

        Returns whether the stream goes on: one that the program does not know is opened again, unless it was open.
        """
        self._ack_due = True
        self._controls_sent = 0
        self._close_sent = False
        if known is None:
            self._open_sent = False
            return self._request is not None and self.opened is None
        received, controls = known
        self._open_sent = self.opened is not None
        if not self.synced:
            self._input_start, self._next_control, self.synced = received, controls + 1, True
        if self.opened is not None:
            self._take_input(received)
        self._input_sent = self._input_start
        if self._sums is not None:
            self._sums.rewind()
        self._take_controls(controls)
        self._wake()
        return True

    def on_opened(self, reply: OpenedReply) -> None:
        if self.opened is None:
            self.opened, self._request = reply, None
            if reply.received > self._input_start:  # of an upload that goes on
                self._input_start = self._input_sent = reply.received
            if reply.summed is not None:
                self._acknowledge_after = self.window // 4
                self._sums = InputSums(self._input_start, reply.summed)
            self._wake()
            self._flush()

    def on_end(self, reply: EndReply) -> None:
        """Raises: GuestMisbehaved."""
        if reply.offset < self.arrived and reply.errno is None:
            raise GuestMisbehaved("a stream ends before its output")
        if self.end is None:
            self.end = reply if reply.errno is None else _cut(reply, self.arrived)
            self._wake()

    def on_done(self, reply: DoneReply) -> None:
        self._take_controls(reply.n)

    def on_data(self, body: bytes) -> bool:
        """Return whether it was output, and not what is known already. Raises: GuestMisbehaved."""
        if len(body) < DATA_HEAD.size:
            raise GuestMisbehaved("a data frame is too short")
        offset, channel = DATA_HEAD.unpack_from(body)
        if offset > self.arrived or channel not in (END, OUT, ERR):
            raise GuestMisbehaved("output has a gap")
        if channel == END:
            self._output_closed = True
            self._wake()
            return False
        return self._take_output(channel, body[DATA_HEAD.size + self.arrived - offset :])

    def on_summed(self, body: bytes) -> bool:
        """The same for content with its CRC-32. Raises: GuestMisbehaved."""
        if len(body) < SUMMED_HEAD.size:
            raise GuestMisbehaved("a frame of content is too short")
        offset, channel, total = SUMMED_HEAD.unpack_from(body)
        if offset != self.arrived or channel != OUT:
            raise GuestMisbehaved("content has a gap")
        content = body[SUMMED_HEAD.size :]
        found = crc32(content, self._arrived_sum)
        if found != total:
            raise GuestMisbehaved("content is damaged")
        self._arrived_sum = found
        return self._take_output(channel, content)

    def _take_output(self, channel: int, fresh: bytes) -> bool:
        """Raises: GuestMisbehaved."""
        if not fresh:
            return False
        if self.arrived + len(fresh) > self.acknowledged + self.window or len(self._pieces) >= MAX_PIECES:
            raise GuestMisbehaved("more output than was allowed")
        self._pieces.append((self.arrived, channel, fresh))
        self.arrived += len(fresh)
        self._wake()
        return True

    def on_ack(self, body: bytes) -> None:
        """Raises: GuestMisbehaved."""
        if len(body) != ACK_BODY.size:
            raise GuestMisbehaved("an acknowledgement has a wrong size")
        received, limit = ACK_BODY.unpack(body)
        self._take_input(received)
        self._input_limit = limit
        self._wake()
        if self._input or self._input_closed:
            self._flush()

    def _take_input(self, received: int) -> None:
        """Raises: GuestMisbehaved."""
        if received > self.input_offset:
            raise GuestMisbehaved("input is acknowledged that was not sent")
        if received > self._input_start:
            del self._input[: received - self._input_start]
            self._input_start = received
            if self._sums is not None:
                self._sums.taken(received)
            self._input_sent = max(self._input_sent, received)
            self._on_input_taken()

    def _take_controls(self, done: int) -> None:
        while self._controls and self._controls[0][0] <= done:
            self._controls.popleft()

    def frames(self) -> Iterator[bytes]:
        """What is to be sent now, a piece of input at a time."""
        if self._request is not None:
            if self._open_sent:
                return
            self._open_sent = True
            yield message(self.number, {"op": "open", "window": self.window, **self._request})
        if self._ack_due:
            self._ack_due, self._acknowledged_there = False, self.acknowledged
            yield frame(ACK, self.number, ACK_BODY.pack(self.acknowledged, self.acknowledged + self.window))
        for n, fields in self._controls:
            if n > self._controls_sent:
                self._controls_sent = n
                yield message(self.number, {**fields, "n": n})
        if self.opened is not None and self.synced:
            yield from self._input_frames()

    def _input_frames(self) -> Iterator[bytes]:
        while self._input_sent < min(self.input_offset, self._input_limit):
            at = self._input_sent - self._input_start
            with memoryview(self._input) as view:
                part = bytes(view[at : at + min(PIECE, self._input_limit - self._input_sent)])
            offset = self._input_sent
            self._input_sent += len(part)
            if self._sums is not None:
                yield summed_frame(self.number, offset, part, self._sums.sent(part))
            else:
                yield frame(DATA, self.number, DATA_HEAD.pack(offset, OUT) + part)
        if self._input_closed and not self._close_sent and self._input_sent == self.input_offset:
            self._close_sent = True
            yield frame(DATA, self.number, DATA_HEAD.pack(self._input_sent, END))


def _cut(reply: EndReply, arrived: int) -> EndReply:
    """An end with an error may come before its output: nothing more is waited for."""
    return EndReply(offset=arrived, errno=reply.errno, error=reply.error)
