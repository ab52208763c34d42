"""A bounded channel whose sender never waits: what is published when it is full displaces what waits in it."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class LossyChannel(Generic[T]):
    """Publishes to one reader of `receive`; at most `capacity` items (two or more) wait for it.

    When the channel is full the oldest item is dropped; with `overflow`, all items are, and it takes their place, so
    that the reader knows.
    """

    def __init__(self, capacity: int, overflow: T | None = None) -> None:
        self._send, self.receive = trio.open_memory_channel[T](capacity)
        self._overflow = overflow

    def publish(self, item: T) -> None:
        """Send an item without waiting, dropping older ones if need be; no error if the reader has closed."""
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._make_room()
            self._send.send_nowait(item)
        except trio.BrokenResourceError:
            pass

    def close(self) -> None:
        """End the channel; what waits in it can still be read."""
        self._send.close()

    def _make_room(self) -> None:
        if self._overflow is None:
            self.receive.receive_nowait()
            return
        while self.receive.statistics().current_buffer_used:
            self.receive.receive_nowait()
        self._send.send_nowait(self._overflow)
