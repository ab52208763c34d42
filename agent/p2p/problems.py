"""What is wrong with this node's place in its fleet, in sentences for its health."""

from __future__ import annotations

from datetime import UTC, datetime

import trio

from ...protocols.membership.rules import SKEW
from .context import MeshContext

WARN_BEFORE = 10 * 86400
"""Seconds before the end of this node's certificate when its health speaks of it."""


def mesh_problems(context: MeshContext) -> list[str]:
    """Return what is wrong with the node's place in its fleet, and what to do about it."""
    return [*membership_problems(context), *_copies(context)]


def _copies(context: MeshContext) -> list[str]:
    return [
        f"two nodes run with the identity of {context.title(peer)} ({peer}), one of them with a copy of its data "
        "directory: stop the copy, start it with an empty data directory and let it join as a node of its own"
        for peer in context.instances.copied(trio.current_time())
    ]


def membership_problems(context: MeshContext) -> list[str]:
    """Return what is wrong with the node's membership or its clock, and what to do about it."""
    membership = context.membership
    if behind := membership.clock_behind:
        return [f"this node's clock is wrong: statements that it has taken are dated {_span(behind)} ahead of it"]
    own = membership.valid_certificate(membership.peer_id)
    if own is not None and own.exp - context.now() > WARN_BEFORE:
        return _clock_differs(context)
    if own is not None:
        end = datetime.fromtimestamp(own.exp, UTC).date().isoformat()
        founder = context.title(membership.fleet)
        cure = f"let {founder}, which founded the fleet, or another admin come online"
        return [f"this node's certificate ends on {end} and no admin has renewed it: {cure}"]
    why = membership.explain(membership.peer_id)
    said = f"this node is no member of the fleet {membership.fleet} any more ({why.status}): {why.why}"
    return [f"{said}. {why.cure} No peer talks to it until it joins again with a new ticket"]


def _clock_differs(context: MeshContext) -> list[str]:
    clocks = sorted(context.peer_clocks.values())
    ahead = clocks[len(clocks) // 2] + trio.current_time() - context.now() if clocks else 0.0
    if abs(ahead) <= SKEW:
        return []
    direction = "behind" if ahead > 0 else "ahead of"
    return [f"this node's clock is {_span(abs(ahead))} {direction} its peers' clocks: set the wrong one right"]


def _span(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172800 else f"{seconds / 86400:.1f} days"
