"""Calls of a member that keeps no rule of a sender."""

from __future__ import annotations

import msgspec

from twinshare.agent.simulation import SimulatedNode
from twinshare.protocols.access import Role
from twinshare.protocols.messages import Request


async def raw_call(member: SimulatedNode, peer_id: str, method: str, packed: bytes) -> bytes:
    """Make a call with arguments as they are, past all that an honest sender checks. Raises: what the peer answers."""
    session = await member.mesh.require_running().sessions.session_to(peer_id)
    return await session.call(method, Request(30.0, Role.ADMIN, None, False, 0, msgspec.Raw(packed)))
