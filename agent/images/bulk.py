"""Chunks of an image over a connection of its own, whose two ends are worked by threads: no event loop carries bytes.

The connection and the stream on which it was agreed last equally long.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, TypeVar

import trio

from ...protocols.blob import LENGTH, MAX_BATCH, MAX_CHUNKS, BlobRequest, BlobWant
from ...protocols.errors import PeerMisbehaved, PeerUnreachable
from ...protocols.tunnel import HEAD, MAX_FRAME, decode, encode, length_of
from ..socket_threads import receive_exactly, run_on_socket
from .peer_serve import SharedDisk

T = TypeVar("T")
Batch: TypeAlias = list[int]

LINES: Final = 2
"""Connections to one peer for one image: one end of one of them works while the other waits."""
FAST: Final = 20 << 20
"""Bytes a second from which on such a connection is worth it. On a slower line the loop lets calls go first."""
SLOW: Final = FAST // (2 * LINES)
"""Bytes a second below which such a connection is given up."""
TRIAL: Final = 8 << 20
"""Bytes over which the rate is taken."""
MAX_LINES: Final = 32
"""Connections that this node reads from at once."""
_DEPTH: Final = 3
_MOST: Final = MAX_BATCH + 64 * MAX_CHUNKS
"""Bytes of an answer: uncompressed chunks, and what frames them."""
_threads = trio.CapacityLimiter(MAX_LINES)


class NoBulk(Exception):
    """There is no connection for bulk; the message says why. What it would have carried goes over a stream."""


@dataclass(frozen=True, slots=True)
class BulkLine:
    """`stream` carries nothing more: its end is the end of the connection."""

    sock: socket.socket
    stream: trio.abc.ReceiveStream

    async def run(self, work: Callable[[socket.socket], T], limiter: trio.CapacityLimiter = _threads) -> T:
        """Run `work` on the socket in a thread. Raises: what it raises."""
        return await run_on_socket(self.sock, partial(work, self.sock), limiter=limiter, until=self._over)

    async def _over(self) -> None:
        try:
            await self.stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


OpenBulk: TypeAlias = Callable[[BlobRequest], AbstractAsyncContextManager[BulkLine]]
"""Raises: NoBulk."""


class Pace:
    """Whether the last `TRIAL` bytes came at `rate` bytes a second: neither fast nor slow before."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._size, self._since = 0, time.monotonic()
        self.fast = self.slow = False

    def add(self, size: int) -> None:
        self._size += size
        if self._size >= TRIAL:
            now = time.monotonic()
            self.fast = self._size >= self._rate * (now - self._since)
            self.slow = not self.fast
            self._size, self._since = 0, now


def fetch(
    sock: socket.socket,
    take: Callable[[], Batch | None],
    keep: Callable[[Batch, list[memoryview]], None],
    within: float,
) -> bool:
    """Fetch batches of chunks until there are none; False when the connection became slow before.

    `keep` may use the frames until it returns. An answer must come `within` so many seconds. Blocking.
    Raises: PeerUnreachable, PeerMisbehaved, what `take` and `keep` raise.
    """
    sock.settimeout(within)
    buffer = memoryview(bytearray(_MOST))
    under_way: deque[Batch] = deque()
    pace = Pace(SLOW)
    while True:
        while len(under_way) < _DEPTH and not pace.slow and (batch := take()):
            _ask(sock, batch)
            under_way.append(batch)
        if not under_way:
            return not pace.slow
        answer = _receive_answer(sock, buffer, within)
        keep(under_way[0], _frames(answer, len(under_way.popleft())))
        pace.add(len(answer))


def _ask(sock: socket.socket, batch: Batch) -> None:
    try:
        sock.sendall(encode(BlobWant(chunks=batch)))
    except OSError as error:
        raise PeerUnreachable(f"a connection for an image was lost: {error}") from None


def _receive_answer(sock: socket.socket, buffer: memoryview, within: float) -> memoryview:
    try:
        if receive_exactly(sock, buffer[: LENGTH.size], within):
            (size,) = LENGTH.unpack(buffer[: LENGTH.size])
            if size > _MOST:
                raise PeerMisbehaved(f"the peer announces {size} bytes of chunks")
            if receive_exactly(sock, buffer[:size], within):
                return buffer[:size]
    except OSError as error:
        raise PeerUnreachable(f"a connection for an image was lost: {error}") from None
    raise PeerUnreachable("the peer closed a connection for an image")


def _frames(answer: memoryview, count: int) -> list[memoryview]:
    """Raises: PeerMisbehaved."""
    frames: list[memoryview] = []
    for _ in range(count):
        if len(answer) < LENGTH.size:
            raise PeerMisbehaved("the peer sends less of an image than it was asked for")
        (size,) = LENGTH.unpack(answer[: LENGTH.size])
        frame, answer = answer[LENGTH.size : LENGTH.size + size], answer[LENGTH.size + size :]
        if not 0 < size == len(frame):
            raise PeerMisbehaved("the peer cannot read a part of the image")
        frames.append(frame)
    return frames


def answer_questions(sock: socket.socket, disk: SharedDisk, within: float) -> None:
    """Send the chunks that are asked for until the far side ends it, `within` seconds at most for each step. Blocking.

    Raises: PeerMisbehaved, OSError.
    """
    sock.settimeout(within)
    question = memoryview(bytearray(MAX_FRAME))
    while receive_exactly(sock, question[: HEAD.size], within):
        length = length_of(question[: HEAD.size])
        if not receive_exactly(sock, question[:length], within):
            return
        answer = disk.pack(decode(bytes(question[:length]), BlobWant).chunks)
        size = sum(map(len, answer))
        begun = time.monotonic()
        sock.sendall(LENGTH.pack(size))
        for piece in answer:
            sock.sendall(piece)
        disk.compression.sent(size, time.monotonic() - begun)
