"""Messages between members of a fleet, and between a member and a node that joins. No REST route leads here.

Where the wire has another name than the term of the glossary, it is given as `wire_name`, `wire_argument` or `name`.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from .access import Role
from .frames import MAX_FRAME
from .membership.statements import Chain, SignedRevocation
from .peer import MAX_MESSAGE, MessageReply, check_nesting
from .routes import peers_only

MAX_ADDRESSES = 16
MAX_UPDATE_ITEMS = 100
"""Items of each kind in one gossip update."""

MESSAGE_HEADER = 512
"""Bytes of a packed message besides its data: its type and the names of the fields."""

PeerName = Annotated[str, Meta(min_length=1, max_length=255)]
Address = Annotated[str, Meta(max_length=256)]
Bytes = Annotated[bytes, Meta(min_length=1, max_length=64)]


class PeerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The addresses at which a peer says it can be dialled; the highest `number` is the newest.

    `token` is the same record as the peer has signed it: a JWS. Peers of the first release have none, and pass none on.
    """

    peer: PeerName
    addresses: Annotated[list[Address], Meta(max_length=MAX_ADDRESSES)]
    number: int
    token: Annotated[str, Meta(max_length=4096)] = ""


class GossipUpdate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Membership certificates, revocations and peer records that the receiver may not have."""

    members: Annotated[list[Chain], Meta(max_length=MAX_UPDATE_ITEMS)] = []
    revocations: Annotated[list[SignedRevocation], Meta(max_length=MAX_UPDATE_ITEMS)] = []
    records: Annotated[list[PeerRecord], Meta(max_length=MAX_UPDATE_ITEMS)] = msgspec.field(
        default_factory=list, name="whereabouts"
    )

    def __bool__(self) -> bool:
        return bool(self.members or self.revocations or self.records)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A user's message as it reaches the peer."""

    message_type: Annotated[str, Meta(min_length=1, max_length=64)]
    data: dict[str, Any]

    def __post_init__(self) -> None:
        check_nesting(self.data)


class MeshService(Protocol):
    """Calls between members."""

    @peers_only(Role.VIEWER, max_arguments=MAX_FRAME, wire_argument="news")
    async def tell(self, update: GossipUpdate) -> None:
        """Take in a gossip update."""
        ...

    @peers_only(Role.VIEWER, max_arguments=MAX_MESSAGE + MESSAGE_HEADER, wire_argument="letter")
    async def deliver(self, message: Message) -> MessageReply:
        """Receive a message."""
        ...

    @peers_only(Role.VIEWER)
    async def renew(self) -> Chain:
        """Issue a certificate with a later expiry to the caller. Raises: Forbidden when this node cannot."""
        ...


class JoinHello(msgspec.Struct, frozen=True, kw_only=True):
    """The first message of a node that joins. `ticket` is the ticket's ID."""

    ticket: Bytes
    nonce: Bytes


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The joiner's half of the proof, and the name of its node."""

    ticket: Bytes
    proof: Bytes
    name: PeerName


class JoinReply(msgspec.Struct, frozen=True, kw_only=True):
    """The inviter's half of the proof, the new member's certificate, and the fleet as the inviter knows it."""

    proof: Bytes
    fleet: PeerName
    chain: Chain
    updates: list[GossipUpdate] = msgspec.field(name="news")


class JoinService(Protocol):
    """Calls of a node that holds a ticket and is no member yet."""

    @peers_only(Role.VIEWER, wire_name="knock", wire_argument="knock")
    async def greet(self, hello: JoinHello) -> bytes:
        """Return the inviter's nonce."""
        ...

    @peers_only(Role.VIEWER, wire_argument="candidacy")
    async def join(self, request: JoinRequest) -> JoinReply:
        """Make the caller a member. Raises: Forbidden."""
        ...
