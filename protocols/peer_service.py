"""The operations on the mesh, as the node that is asked sees it. No peer can call them."""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import Meta

from .access import Role
from .bodies import MessageAnswer, P2pChanged, PeerList
from .peer import (
    InviteRequest,
    LeftOut,
    Message,
    MessageReply,
    P2pState,
    PeerInfo,
    PeerRef,
    Ping,
    RevocationEffect,
    Ticket,
)
from .routes import rest


class PeerService(Protocol):
    """The mesh, as the node that is asked sees it; no peer can steer it."""

    @rest("GET", "/p2p/info", Role.VIEWER, local=True)
    async def p2p_info(self) -> PeerInfo:
        """Show this node as its peers see it."""
        ...

    @rest("GET", "/p2p/status", Role.VIEWER, local=True)
    async def p2p_status(self) -> P2pState:
        """Show whether P2P services run."""
        ...

    @rest("GET", "/p2p/peers", Role.VIEWER, local=True, answer=PeerList)
    async def list_peers(self) -> list[PeerInfo]:
        """List the peers of the fleet."""
        ...

    @rest("GET", "/p2p/peers/<peer>", Role.VIEWER, local=True)
    async def get_peer(self, peer: PeerRef) -> PeerInfo:
        """Show one peer."""
        ...

    @rest("POST", "/p2p/peers/<peer>/ping", Role.VIEWER, local=True, journalled=False)
    async def ping_peer(self, peer: PeerRef) -> Ping:
        """Measure the round trip to a peer."""
        ...

    @rest("DELETE", "/p2p/peers/<peer>", Role.ADMIN, local=True, journalled=False)
    async def revoke_peer(self, peer: PeerRef, leave_out: LeftOut = ()) -> PeerInfo:
        """Revoke a peer's membership. Whom it had admitted stays a member, but for `leave_out`."""
        ...

    @rest("GET", "/p2p/peers/<peer>/revocation", Role.ADMIN, local=True)
    async def preview_revocation(self, peer: PeerRef) -> list[RevocationEffect]:
        """List what revoking a peer would change, for it and for others."""
        ...

    @rest("POST", "/p2p/leave", Role.ADMIN, local=True, journalled=False)
    async def leave_fleet(self) -> PeerInfo:
        """Leave the fleet; the node is alone in a fleet of its own then. Raises: Conflict for the founder."""
        ...

    @rest("POST", "/p2p/start", Role.ADMIN, local=True, answer=P2pChanged, journalled=False)
    async def start_p2p(self) -> P2pState:
        """Start P2P services."""
        ...

    @rest("POST", "/p2p/stop", Role.ADMIN, local=True, answer=P2pChanged, journalled=False)
    async def stop_p2p(self) -> P2pState:
        """Stop P2P services; local VMs and REST go on."""
        ...

    @rest(
        "POST",
        "/p2p/message",
        Role.OPERATOR,
        local=True,
        answer=MessageAnswer,
        journalled=False,
        example={"peer_id": "peer-456", "message_type": "HELLO", "data": {"message": "Hello from REST API!"}},
    )
    async def send_message(self, message: Message) -> MessageReply:
        """Send a message to a peer."""
        ...

    @rest(
        "POST",
        "/p2p/invite",
        Role.ADMIN,
        local=True,
        journalled=False,
        example={"role": "operator", "expires": 600, "uses": 1},
    )
    async def invite_peer(self, invite: InviteRequest) -> Ticket:
        """Make a ticket with which another node can join the fleet."""
        ...

    @rest("POST", "/p2p/join", Role.ADMIN, local=True, journalled=False)
    async def join_fleet(self, ticket: Annotated[str, Meta(min_length=1, max_length=4096)]) -> PeerInfo:
        """Join the fleet that a ticket comes from."""
        ...
