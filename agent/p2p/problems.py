"""What is wrong with this node's place in its fleet, in sentences for its health."""

from __future__ import annotations

from datetime import UTC, datetime

from .context import MeshContext

WARN_BEFORE = 10 * 86400
"""Seconds before the end of this node's certificate when its health speaks of it."""


def membership_problems(context: MeshContext) -> list[str]:
    """Return what is wrong with the node's own certificate, and what to do about it."""
    membership = context.membership
    own = membership.valid_certificate(membership.peer_id)
    if own is not None and own.exp - context.now() > WARN_BEFORE:
        return []
    if own is not None:
        end = datetime.fromtimestamp(own.exp, UTC).date().isoformat()
        founder = context.title(membership.fleet)
        cure = f"let {founder}, which founded the fleet, or another admin come online"
        return [f"this node's certificate ends on {end} and no admin has renewed it: {cure}"]
    said = f"this node's certificate of the fleet {membership.fleet} was revoked or has expired"
    return [f"{said}: no peer talks to it; join again with a new ticket"]
