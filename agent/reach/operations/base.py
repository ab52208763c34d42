"""What operations on tunnels have in common."""

from __future__ import annotations

from ...journal.operation import JournalledOperation
from ..tunnels import Tunnels


class TunnelOperation(JournalledOperation[Tunnels]):
    """A method on forwards, for a VM of a peer: the port is one of this node."""

    through_peer = True
