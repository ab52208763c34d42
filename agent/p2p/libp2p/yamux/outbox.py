"""What waits to be written: control frames first, then short messages, then bulk, each stream in its turn.

A stream whose queue was empty is served before those that always have more, as in fq_codel (RFC 8290): a call does not
wait behind an image. Data is cut into frames when it is taken, so that a frame is as small as a slow line wants it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .frame import DATA, ProtocolError, encode

QUANTUM: Final = 16 * 1024
"""Bytes of a stream that are served before those that always have more, and that it may always add."""
MAX_ANSWERS: Final = 1024 * 1024
"""Bytes of answers to a far side that asks and does not read."""
MAX_PAYLOAD: Final = 65_507
"""Body of one data frame: with its header it fills one noise message."""
HIGH_WATER: Final = 6 * MAX_PAYLOAD
"""Bytes beyond which a stream that has data here already may add no more; answers and credit still go in.

Whole frames, of which all that is made on their way to the socket is in blocks that the heap keeps (`agent/heap.py`).
"""


class _Queue:
    """The data of one stream in its order, and the frame that ends it."""

    __slots__ = ("end", "parts", "size")

    def __init__(self) -> None:
        self.parts: deque[memoryview] = deque()
        self.size = 0
        self.end = b""

    def cut(self, most: int) -> list[memoryview]:
        """Take at most `most` bytes, in as many parts as they were put in."""
        taken: list[memoryview] = []
        left = most
        while left and self.parts:
            part = self.parts[0]
            if len(part) <= left:
                taken.append(self.parts.popleft())
            else:
                taken.append(part[:left])
                self.parts[0] = part[left:]
            left -= len(taken[-1])
        self.size -= most - left
        return taken


class Outbox:
    """`size` counts all that waits, in bytes."""

    def __init__(self) -> None:
        self._control: list[bytes] = []
        self._control_size = 0
        self._answers = 0
        self._queues: dict[int, _Queue] = {}
        self._first: deque[int] = deque()
        self._then: deque[int] = deque()
        self._data = 0

    @property
    def size(self) -> int:
        return self._control_size + self._data + sum(len(queue.end) for queue in self._queues.values())

    @property
    def bulk(self) -> bool:
        """More waits than what goes first."""
        return self._data > QUANTUM * len(self._first)

    @property
    def urgent(self) -> bool:
        """Something waits that goes before bulk."""
        return bool(self._control or self._first)

    def room(self, stream_id: int) -> int:
        """Bytes that a stream may add now."""
        if self._data < HIGH_WATER:
            return MAX_PAYLOAD
        queue = self._queues.get(stream_id)
        return QUANTUM if queue is None or not queue.size else 0

    def put(self, part: bytes) -> None:
        """Add a control frame."""
        self._control.append(part)
        self._control_size += len(part)

    def answer(self, frame: bytes) -> None:
        """Put what the far side made us say. Raises: ProtocolError when it made us say too much."""
        self._answers += len(frame)
        if self._answers > MAX_ANSWERS:
            raise ProtocolError("the peer asks without reading the answers")
        self.put(frame)

    def put_data(self, stream_id: int, data: bytes | memoryview) -> None:
        """Add data of a stream, which does not change."""
        queue = self._queue(stream_id)
        queue.parts.append(memoryview(data))
        queue.size += len(data)
        self._data += len(data)

    def put_end(self, stream_id: int, frame: bytes) -> None:
        """Add the frame that follows all data of a stream."""
        if stream_id in self._queues:
            self._queues[stream_id].end = frame
        else:
            self.put(frame)

    def put_reset(self, stream_id: int, frame: bytes) -> None:
        """Add the frame that ends a stream in both directions: after what is short, in place of bulk."""
        queue = self._queues.get(stream_id)
        if queue is not None and queue.size <= QUANTUM:
            queue.end = frame
        else:
            self.drop(stream_id)
            self.put(frame)

    def drop(self, stream_id: int) -> None:
        """Forget what waits of a stream."""
        if (queue := self._queues.pop(stream_id, None)) is not None:
            self._data -= queue.size
            (self._first if stream_id in self._first else self._then).remove(stream_id)

    def take(self, bulk: int | None = None) -> bytes:
        """Control frames and short messages, and at most so many bytes of bulk; None takes all."""
        output: list[bytes | memoryview] = [*self._control]
        self._control, self._control_size, self._answers = [], 0, 0
        while self._first:
            stream_id = self._first.popleft()
            if self._cut(output, stream_id, QUANTUM):
                self._then.append(stream_id)
        left = self._data if bulk is None else bulk
        while self._then and left > 0:
            stream_id = self._then.popleft()
            before = self._data
            if self._cut(output, stream_id, min(left, MAX_PAYLOAD)):
                self._then.append(stream_id)
            left -= before - self._data
        return b"".join(output)

    def _queue(self, stream_id: int) -> _Queue:
        queue = self._queues.get(stream_id)
        if queue is None:
            queue = self._queues[stream_id] = _Queue()
            self._first.append(stream_id)
        return queue

    def _cut(self, output: list[bytes | memoryview], stream_id: int, most: int) -> bool:
        """Move data of a stream into the output, and its end when nothing is left; return whether there is more."""
        queue = self._queues[stream_id]
        before = queue.size
        parts = queue.cut(most)
        size = before - queue.size
        self._data -= size
        output += [encode(DATA, 0, stream_id, size), *parts]
        if queue.size:
            return True
        output.append(queue.end)
        del self._queues[stream_id]
        return False
