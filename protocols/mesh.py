"""What members of a fleet, and those who want to become one, say to each other. No REST route leads here."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from .access import Role
from .membership import Chain, SignedRevocation
from .peer import MessageReply, check_nesting
from .table import peers_only

MAX_ADDRESSES = 16
MAX_NEWS = 100
"""Items of each kind in one piece of news."""

PeerName = Annotated[str, Meta(min_length=1, max_length=255)]
Address = Annotated[str, Meta(max_length=256)]
Bytes = Annotated[bytes, Meta(min_length=1, max_length=64)]


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """Where a peer says it can be dialled; the highest `number` is the newest. A hint, confirmed by dialling."""

    peer: PeerName
    addresses: Annotated[list[Address], Meta(max_length=MAX_ADDRESSES)]
    number: int


class News(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a member knows and another may not: certificates, revocations, addresses."""

    members: Annotated[list[Chain], Meta(max_length=MAX_NEWS)] = []
    revocations: Annotated[list[SignedRevocation], Meta(max_length=MAX_NEWS)] = []
    whereabouts: Annotated[list[Whereabouts], Meta(max_length=MAX_NEWS)] = []

    def __bool__(self) -> bool:
        return bool(self.members or self.revocations or self.whereabouts)


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it reaches the peer."""

    message_type: Annotated[str, Meta(min_length=1, max_length=64)]
    data: dict[str, Any]

    def __post_init__(self) -> None:
        check_nesting(self.data)


class MeshService(Protocol):
    """Between members."""

    @peers_only(Role.VIEWER)
    async def tell(self, news: News) -> None:
        """Pass on what one knows."""
        ...

    @peers_only(Role.VIEWER)
    async def deliver(self, letter: Letter) -> MessageReply:
        """Hand over a message."""
        ...

    @peers_only(Role.VIEWER)
    async def renew(self) -> Chain:
        """Ask an admin for a certificate with a later end. Raises: Forbidden when the one asked cannot give it."""
        ...


class Knock(msgspec.Struct, frozen=True, kw_only=True):
    """`ticket` is its id."""

    ticket: Bytes
    nonce: Bytes


class Candidacy(msgspec.Struct, frozen=True, kw_only=True):
    """The joiner's half of the proof, and how its node is called."""

    ticket: Bytes
    proof: Bytes
    name: PeerName


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The inviter's half of the proof, the new member's certificate, and the fleet as the inviter knows it."""

    proof: Bytes
    fleet: PeerName
    chain: Chain
    news: list[News]


class JoinService(Protocol):
    """For a stranger with a ticket."""

    @peers_only(Role.VIEWER)
    async def knock(self, knock: Knock) -> bytes:
        """Get the inviter's nonce."""
        ...

    @peers_only(Role.VIEWER)
    async def join(self, candidacy: Candidacy) -> Welcome:
        """Become a member. Raises: Forbidden."""
        ...
