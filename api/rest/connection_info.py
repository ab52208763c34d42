"""What is known of one connection, for as long as it lives: who is at its far end, and how to interrupt its view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ...protocols.access import Caller
from ...protocols.errors import Unavailable


@dataclass(slots=True, eq=False)
class ConnectionInfo:
    """One connection as the guard sees it.

    `address` is the far IP address, or `unix`; `served` the local address it came in on; `source` is what its share of
    connections and requests is counted by; `local` the caller when the far end needs no token.
    """

    address: str
    source: str
    served: str = "127.0.0.1"
    secure: bool = False
    local: Caller | None = None
    # Whether a request on it was admitted: until then its client is a stranger.
    admitted: bool = False
    # When its client last sent anything, on trio's clock.
    heard_at: float = 0.0
    # An endless response (events, a console) is cut at once when the server stops; others get time to finish.
    endless: bool = False
    _view: trio.CancelScope | None = None

    @property
    def is_known(self) -> bool:
        """Whether its client has shown a right to be here."""
        return self.admitted or self.local is not None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Run a view. Raises: Unavailable when `interrupt` stopped it."""
        self.endless = False
        self._view = trio.CancelScope()
        try:
            with self._view as scope:
                yield
        finally:
            self._view = None
        if scope.cancelled_caught:
            raise Unavailable("the node is stopping; try again when it is back")

    def interrupt(self) -> bool:
        """Stop the view under way, so that its client is answered 503; False when no view runs."""
        if self._view is None:
            return False
        self._view.cancel()
        return True


def plain_address(host: str) -> str:
    """Return an IPv4 client of a dual-stack socket as the IPv4 client that it is."""
    return host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host
