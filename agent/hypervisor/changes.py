"""The channel of changes: bounded, never blocks its sender, and honest about what it lost."""

from __future__ import annotations

import trio

from .port import Change, ChangeKind

SIZE = 1024


class ChangeFeed:
    """A sender that forgets the oldest changes when nobody reads, and says so with one `RESYNC`."""

    def __init__(self) -> None:
        self._send, self.receive = trio.open_memory_channel[Change](SIZE)

    def publish(self, change: Change) -> None:
        try:
            self._send.send_nowait(change)
        except trio.WouldBlock:
            # A list read after the RESYNC tells all that the forgotten changes told.
            while self.receive.statistics().current_buffer_used:
                self.receive.receive_nowait()
            self._send.send_nowait(Change(kind=ChangeKind.RESYNC))
            self._send.send_nowait(change)
        except trio.BrokenResourceError:
            pass  # the reader is gone: nobody wants to know

    def close(self) -> None:
        """No more changes; what is buffered can still be read."""
        self._send.close()
