"""What the mesh is made of, given once by whoever opens it and shared by its parts."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...protocols.access import Caller, Role, Witness, unwitnessed
from ...protocols.errors import Forbidden
from ...protocols.table import Dispatcher
from .directory import Directory
from .finders import OpenFinders
from .host import Admission, Direction, Gate, Host, PeerId, Stream
from .membership import Membership
from .rpc import EventSource
from .tickets import TicketBook

OpenHost: TypeAlias = Callable[[Gate], AbstractAsyncContextManager[Host]]
Publish: TypeAlias = Callable[[str, Mapping[str, Any]], object]
Serve: TypeAlias = Callable[[Caller, Stream], Awaitable[None]]
"""What is served to members alone: it gets the peer as a caller, with the role and limits of its certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`agent` is our program and its version; `silence` how many seconds a peer may say nothing; `now` the epoch's.

    `served` are further protocols, each by its ID.
    """

    open_host: OpenHost
    open_finders: OpenFinders
    name: str
    agent: str
    dispatcher: Dispatcher
    events: EventSource
    publish: Publish
    now: Callable[[], float]
    silence: float
    rng: random.Random
    membership: Membership
    directory: Directory
    tickets: TicketBook
    served: Mapping[str, Serve] = field(default_factory=dict)
    witness: Witness = unwitnessed
    courted: set[PeerId] = field(default_factory=set)

    def gate(self, peer: PeerId, direction: Direction) -> Admission:
        """Members come in; strangers to the door, while a ticket is out; and whom we ask to let us in."""
        if self.membership.standing(peer) is not None:
            return Admission.MEMBER
        if peer in self.courted:
            return Admission.GUEST
        if direction is Direction.INBOUND and self.tickets.live and not self.membership.denies(peer):
            return Admission.GUEST
        return Admission.REFUSED

    def title(self, peer: PeerId) -> str:
        """A peer as people call it; its ID stands in the error's details."""
        known = self.membership.known(peer)
        return known.name if known else peer

    @property
    def line_silence(self) -> float:
        """Seconds that an idle line may be silent: the host notices sooner, and pings on each line cost more."""
        return self.silence * 4

    @contextmanager
    def courting(self, peer: PeerId) -> Iterator[None]:
        """While we ask a stranger to let us into its fleet."""
        self.courted.add(peer)
        try:
            yield
        finally:
            self.courted.discard(peer)


def no_member(peer: PeerId) -> Forbidden:
    return Forbidden(f"{peer} is no member of this node's fleet in good standing", role_needed=str(Role.VIEWER))
