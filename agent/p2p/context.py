"""The context of a mesh: what its parts share."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from ...protocols.access import LOCAL, AuditSink, Caller, Role, no_audit
from ...protocols.errors import Forbidden
from ...protocols.events import EventPayload
from ...protocols.table import Dispatcher
from ..limits import Meter
from .address_book import AddressBook
from .dial_policy import DialPolicy
from .discovery import OpenDiscovery
from .host import Admission, Direction, Gate, Host, PeerId, Stream
from .instances import Instances
from .membership import Membership
from .offload import Offload
from .records import OwnRecord
from .rpc import EventSource
from .tickets import TicketBook
from .verification import Verifier
from .vm_lists import VmLists

OpenHost: TypeAlias = Callable[[Gate], AbstractAsyncContextManager[Host]]
Serve: TypeAlias = Callable[[Caller, Stream], Awaitable[None]]
"""A handler for members only: it gets the peer as a caller, with the role and limits of its certificate."""


class Publish(Protocol):
    """Publishes an event of this node; `principal` is whose doing it is."""

    def __call__(self, payload: EventPayload, principal: str = LOCAL) -> object: ...


@dataclass(frozen=True, slots=True)
class Served:
    """What this node offers to members: the operations of `dispatcher`, and further protocols by their IDs."""

    dispatcher: Dispatcher
    protocols: Mapping[str, Serve] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshContext:
    """`agent` is our program and its version; a peer silent for `peer_timeout` seconds is gone; `now` is Unix time.

    `joining_via` are the inviters of joins under way.
    """

    open_host: OpenHost
    open_discovery: OpenDiscovery
    name: str
    agent: str
    events: EventSource
    publish: Publish
    now: Callable[[], float]
    peer_timeout: float
    rng: random.Random
    membership: Membership
    address_book: AddressBook
    tickets: TicketBook
    own_record: OwnRecord
    verifier: Verifier
    offload: Offload
    meter: Meter
    vm_lists: VmLists
    audit_sink: AuditSink = no_audit
    instances: Instances = field(default_factory=Instances)
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    dial_policy: DialPolicy = field(default_factory=DialPolicy)
    joining_via: set[PeerId] = field(default_factory=set)
    peer_clocks: dict[PeerId, float] = field(default_factory=dict)
    """The time of day by each peer that is online, less trio's time: it holds when our own clock is set."""

    def gate(self, peer: PeerId, direction: Direction) -> Admission:
        """Admit members; as guests those whose joining is under way and, while a ticket is valid, unknown peers."""
        if self.membership.valid_certificate(peer) is not None:
            return Admission.MEMBER
        if peer in self.joining_via:
            return Admission.GUEST
        if direction is Direction.INBOUND and self.tickets.live and not self.membership.denies(peer):
            return Admission.JOINING if self.tickets.is_joining(peer) else Admission.GUEST
        return Admission.REFUSED

    def title(self, peer: PeerId) -> str:
        """Return the name of a peer, or its ID."""
        known = self.membership.known(peer)
        return known.name if known else peer

    @property
    def session_timeout(self) -> float:
        """Return the seconds for which an idle session may be silent. The host's own keepalive notices sooner."""
        return self.peer_timeout * 4

    @contextmanager
    def joining(self, peer: PeerId) -> Iterator[None]:
        """Admit `peer` while this node asks it for membership, or makes it a member."""
        self.joining_via.add(peer)
        try:
            yield
        finally:
            self.joining_via.discard(peer)


def no_member(peer: PeerId) -> Forbidden:
    return Forbidden(f"{peer} is no member of this node's fleet with a valid certificate", role_needed=str(Role.VIEWER))
