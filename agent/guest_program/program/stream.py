"""One stream: its output with offsets, kept until the host has it, and its input, taken once whatever is repeated."""

import os
import struct
from errno import EIO
from zlib import crc32

from .wire import ACK, DATA, HEAD, SUMMED_HEAD, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

DATA_HEAD = struct.Struct(">QB")
KEPT = 256 * 1024
"""Bytes of output that wait for the host, at most, and of input that wait for the guest."""
PIECE = 32 * 1024 - HEAD.size - DATA_HEAD.size
"""Bytes of output in a frame: a virtio port sends 32 KiB at a time, and each time costs."""
PIECE_COST = 64
OUT, ERR, END = 1, 2, 0
"""What a DATA frame carries: stdout or content, stderr, the end of one direction. It begins with offset and channel."""
ACK_BODY = struct.Struct(">QQ")


class DamagedError(Exception):
    """The content of a frame is not what its head says: a cut has ended it."""


class Program:
    """What a stream needs of the program: see main.py."""

    def watch(self, fd: int, events: int, call: "Callable[..., None]") -> None:
        """Call `call(events)` when the descriptor is ready."""
        raise NotImplementedError

    def unwatch(self, fd: int) -> None:
        raise NotImplementedError

    def later(self, seconds: float, call: "Callable[..., None]") -> "list[Any]":
        """Call `call()` once, after so many seconds, unless `never` is called with what this returns."""
        raise NotImplementedError

    def never(self, timer: "list[Any]") -> None:
        raise NotImplementedError

    def say(self, stream: int, body: "dict[str, Any]") -> None:
        """Send a control message; it may be lost with the connection."""
        raise NotImplementedError

    def child(self, pid: int, call: "Callable[..., None]") -> None:
        """Call `call(status)` when a child process has ended."""
        raise NotImplementedError

    def partial(self, path: bytes, seconds: float) -> None:
        """Remove a part of an upload after so many seconds, unless it is continued."""
        raise NotImplementedError


class Stream:
    """A stream of the host's; the kinds of streams are its subclasses."""

    takes = KEPT
    """Bytes of input that the host may send beyond what is waiting here."""

    def __init__(self, program: Program, number: int) -> None:
        self.program, self.number = program, number
        self.opened: "dict[str, Any] | None" = None
        self.result: "dict[str, Any] | None" = None
        self.controls = 0  # how many the host has sent
        # Output: pieces [offset, channel, bytes], the offsets that the host has, that were sent, that it takes.
        self._pieces: "list[tuple[int, int, bytes | bytearray]]" = []
        self.out_end = 0
        self._acked = self._sent = self._limit = 0
        self._out_closed = self._close_sent = False
        # Input: what has arrived, and what was said to the host last.
        self.received = self.received_sum = 0  # the bytes, and their CRC-32 where frames are SUMMED
        self._said = (0, 0)

    # --- what the kinds of streams are ---

    def start(self, request: "dict[str, Any]") -> None:
        """Begin, and call `is_open` at once or later. Raises: OSError, ValueError, KeyError."""
        raise NotImplementedError

    def take(self, data: "bytes | memoryview") -> None:
        """Take input; the bytes are gone after it."""

    def take_end(self) -> None:
        """The input is at its end."""

    def waiting(self) -> int:
        """The bytes of input that were taken and wait still."""
        return 0

    def has_room(self) -> None:
        """The host has taken output: there may be room for more."""

    def control(self, request: "dict[str, Any]") -> None:
        """A signal, a window size."""

    def close(self) -> None:
        """The host has no more use for the stream: end what runs."""

    # --- what they use ---

    def room(self) -> int:
        return max(0, KEPT - (self.out_end - self._acked) - PIECE_COST * len(self._pieces))

    def put(self, channel: int, data: bytes) -> None:
        """Put output into the queue."""
        if self._pieces and data:
            _, last_channel, last = self._pieces[-1]
            if isinstance(last, bytearray) and last_channel == channel and len(last) + len(data) <= PIECE:
                last += data
                self.out_end += len(data)
                return
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            # Short ones are put together, long ones are not copied.
            self._pieces.append((self.out_end, channel, piece if len(piece) > PIECE // 2 else bytearray(piece)))
            self.out_end += len(piece)

    def close_output(self) -> None:
        """No more output, though input may still be taken."""
        self._out_closed = True

    def is_open(self, **facts: "Any") -> None:
        self.opened = facts
        self.say_opened()

    def end(self, **result: "Any") -> None:
        """All output is in the queue; this is how it ended."""
        if self.result is None:
            self.result = dict(result, offset=self.out_end)
            self.say_end()

    def fail(self, error: OSError) -> None:
        number = error.errno or EIO
        self.end(errno=number, error=os.strerror(number))

    # --- what the program uses ---

    def say_opened(self) -> None:
        if self.opened is not None:
            self.program.say(self.number, dict(self.opened, op="opened"))

    def say_end(self) -> None:
        if self.result is not None:
            self.program.say(self.number, dict(self.result, op="end"))

    def resume(self, received: int, limit: int) -> None:
        """A new connection: the host has the output up to `received`."""
        self.on_ack(received, limit)
        self._sent = self._acked
        self._close_sent = False
        self._said = (0, 0)

    def on_ack(self, received: int, limit: int) -> None:
        if not self._acked <= received <= self.out_end:
            return
        self._acked, self._limit = received, limit
        self._sent = max(self._sent, received)
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][2]) <= received:
            del self._pieces[0]
        self.has_room()

    def on_data(self, body: memoryview) -> None:
        offset, channel = DATA_HEAD.unpack_from(body)
        if offset > self.received:
            return  # bytes are missing: not from our host
        if channel == END:
            self.take_end()
            return
        fresh = body[DATA_HEAD.size + self.received - offset :]
        self.received += len(fresh)
        if fresh and self.result is None:
            self.take(fresh)

    def on_summed(self, body: memoryview) -> None:
        """Raises: DamagedError."""
        offset, _, total = SUMMED_HEAD.unpack_from(body)
        if offset != self.received:
            return
        content = body[SUMMED_HEAD.size :]
        found = crc32(content, self.received_sum)
        if found != total:
            raise DamagedError
        self.received_sum = found
        self.received += len(content)
        if content and self.result is None:
            self.take(content)

    def next_frame(self) -> "bytes | memoryview":
        """The next piece of output that the host takes, or nothing."""
        for offset, channel, data in self._pieces:
            if offset + len(data) > self._sent:
                part = data[self._sent - offset :]
                if self._sent + len(part) > self._limit:
                    if self._sent > self._acked or self._sent >= self._limit:
                        return b""  # with the next acknowledgement all of it can be sent
                    part = part[: self._limit - self._sent]
                head = DATA_HEAD.pack(self._sent, channel)
                self._sent += len(part)
                return frame(DATA, self.number, head, part)
        if self._out_closed and not self._close_sent:
            self._close_sent = True
            return frame(DATA, self.number, DATA_HEAD.pack(self.out_end, END))
        return b""

    def ack(self, more_comes: bool) -> bytes:
        """The frame that says how much input has arrived and how much more may come, unless it is known.

        While more of it comes, a quarter of what the host may send is said at once.
        """
        least = self.takes // 4 if more_comes else 0
        state = (self.received, self.received - self.waiting() + self.takes)
        if state == self._said or state[0] - self._said[0] < least > state[1] - self._said[1]:
            return b""
        self._said = state
        return frame(ACK, self.number, ACK_BODY.pack(*state))
