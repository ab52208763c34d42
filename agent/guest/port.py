"""What the rest of the agent and the API use of a guest: streams to it, and what it reports."""

from __future__ import annotations

from typing import Protocol

from ...protocols.guest_stream import FromGuest, Opened, ToGuest


class GuestStream(Protocol):
    """One end of a stream into a guest, here or at a peer: a session's output and stdin, a file, a connection.

    Both methods raise what ended it: GuestUnreachable, GuestRefused, FileNotFound, SessionNotFound, WrongState when the
    VM has stopped, PeerUnreachable when the peer is lost. `receive` may be cancelled and called again; one task at a
    time calls each.
    """

    @property
    def opened(self) -> Opened:
        """What was opened, and at which offsets it begins."""
        ...

    async def receive(self) -> FromGuest:
        """What comes next: `Output` (never empty), and last of all `Finished`.

        Meanwhile `InputTaken` of a session, from time to time, and `OutputEnd` of a connection.
        """
        ...

    async def send(self, message: ToGuest) -> None:
        """Send input, its end, a window size or a signal. It waits while the guest does not read."""
        ...
