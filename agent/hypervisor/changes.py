"""The bounded channel of changes: it drops the oldest, and says so by a `RESYNC`."""

from __future__ import annotations

import trio

from .port import Change, ChangeKind

CAPACITY = 1024


class ChangeFeed:
    """Publishes without blocking; when the channel is full, all waiting changes give way to one `RESYNC`."""

    def __init__(self) -> None:
        self._send, self.receive = trio.open_memory_channel[Change](CAPACITY)

    def publish(self, change: Change) -> None:
        """Send a change, dropping older ones if need be."""
        try:
            self._send.send_nowait(change)
        except trio.WouldBlock:
            # A list read after the RESYNC covers all dropped changes.
            while self.receive.statistics().current_buffer_used:
                self.receive.receive_nowait()
            self._send.send_nowait(Change(kind=ChangeKind.RESYNC))
            self._send.send_nowait(change)
        except trio.BrokenResourceError:
            pass  # the reader has closed

    def close(self) -> None:
        """End the channel; what is buffered can still be read."""
        self._send.close()
