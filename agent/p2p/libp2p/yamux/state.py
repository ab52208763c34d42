"""What a session knows of one stream: windows, unread bytes, which directions are over.

Only the session changes it; a shell reads `readable`, `writable` and `broken` to decide whether to wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

INITIAL_WINDOW: Final = 256 * 1024
"""Bytes that each side may send on a new stream; the protocol fixes it."""


@dataclass(eq=False, slots=True)
class StreamState:
    """`send_credit`: bytes that we may send. `receive_credit`: bytes that the far side may still send.

    `window` is the receive window that we aim at; `unacknowledged` what the reader took since the last credit update.
    """

    id: int
    outbound: bool
    send_credit: int = INITIAL_WINDOW
    receive_credit: int = INITIAL_WINDOW
    window: int = INITIAL_WINDOW
    unacknowledged: int = 0
    unread: bytearray = field(default_factory=bytearray)
    read_ended: bool = False  # the far side sent its end
    write_ended: bool = False  # we sent ours
    broken: bool = False  # reset by the far side, or the connection is over
    closed: bool = False  # we are done with both directions

    @property
    def readable(self) -> bool:
        """A read returns or raises at once."""
        return bool(self.unread) or self.read_ended or self.broken or self.closed

    @property
    def over(self) -> bool:
        """No further frame can matter to this stream."""
        return self.closed or self.broken or (self.read_ended and self.write_ended)
