"""Nodes as other nodes see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .access import Limits, Role
from .vm import Vm

MAX_NESTING = 32
MAX_MESSAGE = 64 << 10
"""Bytes of a message's data, as JSON and as msgpack."""
PeerRef = Annotated[str, Meta(min_length=1, max_length=255, description="peer ID, unique prefix of it, or node name")]

LeftOut = Annotated[tuple[PeerRef, ...], Meta(max_length=256)]


def check_nesting(value: Any, depth: int = 1) -> None:
    """Raises: ValueError when free-form data nests deeper than `MAX_NESTING`."""
    if depth > MAX_NESTING:
        raise ValueError(f"data nests deeper than {MAX_NESTING}")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_nesting(item, depth + 1)


class BudgetUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer has used of what this node takes from it: of `burst` at once, some of which come back each second.

    `refused` counts the calls that were refused for it since the node started.
    """

    budget: str
    used: int
    burst: int
    refused: int


class PeerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `status` is `online`, `offline` or `stopped`; `path` is `direct`, `relayed` or None.

    `membership` is `founder`, `member`, `expired`, `revoked`, `held_back` (its certificate is dated ahead of this
    node's clock) or `unknown`; `reason` says why, and `cure` what changes it. `admitted_by` is the name of who signed.
    `budgets` is in the answer about one peer, not in lists.
    """

    id: str
    name: str
    address: str
    port: int
    status: str
    services: list[str]
    last_seen: datetime | None = None
    uptime: int | None = None
    role: Role | None = None
    path: str | None = None
    addresses: list[str] = []
    membership: str | None = None
    admitted_by: str | None = None
    reason: str = ""
    cure: str = ""
    budgets: list[BudgetUse] | None = None


class AbsentPeer(msgspec.Struct, frozen=True, kw_only=True):
    """A member whose VMs could not be listed now: `reason` says why.

    `vms` of its VMs are listed as they were at `observed_at`; None when it has never listed them to this node.
    """

    id: str
    name: str
    reason: str
    vms: int = 0
    observed_at: datetime | None = None


class FleetVms(msgspec.Struct, frozen=True, kw_only=True):
    """The VMs of the fleet, and the members in `unreachable` that could not be asked for theirs.

    `next` is the cursor of the rows that follow, when only a part was asked for.
    """

    vms: list[Vm]
    unreachable: list[AbsentPeer] = []
    next: str | UnsetType = UNSET


class RevocationEffect(msgspec.Struct, frozen=True, kw_only=True):
    """What revoking a peer changes for a node; `becomes` says what.

    `revoked`: the peer itself. `adopted`: admitted by it, and signed for anew by the revoker. `stays`: admitted below
    it. `out`: left out, or without anybody to vouch for it. `back`: the peer had revoked it, which is void.
    """

    id: str
    name: str
    role: Role
    becomes: str


class P2pState(msgspec.Struct, frozen=True, kw_only=True):
    """What `start` and `stop` leave behind: `started` or `stopped`."""

    status: str
    id: str
    address: str
    port: int


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """`rtt` is in milliseconds."""

    id: str
    rtt: float
    path: str


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message to a peer; `data` is any JSON object up to 64 KiB."""

    peer_id: PeerRef
    message_type: Annotated[str, Meta(min_length=1, max_length=64)]
    data: dict[str, Any]

    def __post_init__(self) -> None:
        check_nesting(self.data)


class MessageReply(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    message: str


class InviteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`expires` is in seconds; `limits` are what the new member may take of each node."""

    role: Role = Role.OPERATOR
    expires: Annotated[int, Meta(ge=1, le=30 * 86400)] = 600
    uses: Annotated[int, Meta(ge=1, le=1000)] = 1
    limits: Limits | None = None


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """`addresses` are where the ticket says that this node is; `warnings` say who cannot use it."""

    ticket: str
    expires: datetime
    role: Role
    addresses: list[str] = []
    warnings: list[str] = []
