"""What is known of one connection, for as long as it lives: who is at its far end, and how to stop its request."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from ...protocols.access import Caller

LOOPBACK = frozenset({"127.0.0.1", "::1"})


@dataclass(slots=True)
class Link:
    """One connection as the guard sees it.

    `address` is the far IP address, or `unix`; `served` the local address it came in on; `source` is what its share of
    connections and requests is counted by; `local` the caller when the far end needs no token.
    """

    address: str
    source: str
    served: str = "127.0.0.1"
    secure: bool = False
    local: Caller | None = None
    # When its client last said anything, on trio's clock.
    heard_at: float = 0.0
    stopping: bool = False
    # A view that streams without an end is cut at once when the server stops; others get time to finish.
    endless: bool = False
    view: trio.CancelScope = field(default_factory=trio.CancelScope)

    def begin(self) -> trio.CancelScope:
        """The scope in which the next view runs."""
        self.view = trio.CancelScope()
        self.endless = False
        return self.view

    def hang_up(self) -> None:
        """The client is gone: what it waited for has no reader."""
        self.view.cancel()

    def stop(self) -> None:
        """The server ends: the view under way is cut, and its client told so."""
        self.stopping = True
        self.view.cancel()


def plain_address(host: str) -> str:
    """An IPv4 client of a dual-stack socket, as the IPv4 client that it is."""
    return host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host
