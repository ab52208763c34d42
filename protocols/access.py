"""Who is calling, and what the caller may do."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import StrEnum
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from .errors import Forbidden, InvalidRequest

MAX_INTEGER = (1 << 63) - 1
"""The largest integer that every wire and every client can carry."""

Amount = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]


class Role(StrEnum):
    """What a principal may do on a node; each role includes the ones before it.

    `VIEWER` reads. `OPERATOR` also creates, and changes what it owns. `ADMIN` does everything.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, needed: Role) -> bool:
        """Whether who has this role may do what takes `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)

    def at_most(self, other: Role) -> Role:
        """The lower of both."""
        return other if self.includes(other) else self


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a principal may hold on a node, at most; None is no limit. Memory in MiB, disk in GiB, images in bytes."""

    vms: Amount | None = None
    cpu: Amount | None = None
    memory: Amount | None = None
    disk: Amount | None = None
    image_bytes: Amount | None = None
    operations_per_minute: Amount | None = None
    operations_at_once: Amount | None = None

    def within(self, other: Limits) -> bool:
        """Whether each of these allows no more than the other's."""
        return self.lowered(other) == self

    def lowered(self, other: Limits) -> Limits:
        """The lower of both, limit by limit."""

        def lower(name: str) -> int | None:
            stated = [limit for limit in (getattr(self, name), getattr(other, name)) if limit is not None]
            return min(stated) if stated else None

        return Limits(**{name: lower(name) for name in self.__struct_fields__})


UNLIMITED = Limits()


LOCAL = "local"
"""The principal of a node's own user."""
Delegate = Annotated[str, Meta(max_length=256)]
"""How a node names to a peer whom it asks for: `token:<name>`, `oidc:<subject>`, or "" for the node's own user."""
_DELEGATE = re.compile(r"[a-z]{1,16}:[^\x00-\x1f\x7f]{1,232}")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One call's caller, as the dialect that received the call has established it.

    `principal` is `local`, `token:<name>`, a peer ID, or `<peer ID>/token:<name>` for whom a peer asks; it becomes the
    owner of what the call creates. `limits` bound what its account may own.
    `until`: when the credential that was shown ends, in seconds of the epoch; None where that is looked up, or never.
    `idempotency_key` makes a repeated mutation the same operation; None lets the operation make its own.
    `detach` asks for the operation instead of its result (`Prefer: respond-async`).
    `from_peer`: the call came from another node; what it opens on this machine concerns others than the caller.
    """

    principal: str
    role: Role
    limits: Limits = UNLIMITED
    until: float | None = None
    idempotency_key: str | None = None
    detach: bool = False
    from_peer: bool = False

    def require(self, needed: Role, what: str) -> None:
        """Raises: Forbidden."""
        if not self.role.includes(needed):
            raise Forbidden(f"{what} needs the role {needed}; this caller has {self.role}", role_needed=str(needed))

    def may_change(self, owner: str) -> bool:
        """Return whether an operator owns it; admins change everything.

        A peer's own user also owns what that peer's tokens made; a token owns what it made itself, and no more.
        """
        return self.role is Role.ADMIN or (self.role is Role.OPERATOR and self.principal in (owner, account_of(owner)))

    def require_ownership(self, owner: str, what: str) -> None:
        """Require that the caller may change what `owner` owns; "" is the node's admin. Raises: Forbidden."""
        if not self.may_change(owner):
            whose = owner or "this node's admin"
            raise Forbidden(f"{what} belongs to {whose}; this needs the role admin", role_needed=str(Role.ADMIN))

    def may_look_into(self, owner: str) -> bool:
        """Return whether the caller may read what a guest of `owner` says and shows: its owner may, and admins."""
        return self.role is Role.ADMIN or self.principal in (owner, account_of(owner))

    @property
    def uses_node_credentials(self) -> bool:
        """Return whether the node's own logins elsewhere serve the caller: the node's user and its admins, no peer."""
        return self.role is Role.ADMIN and not self.from_peer

    @property
    def delegate(self) -> str:
        """How this node names the caller to its peers."""
        return "" if self.principal == LOCAL else self.principal

    def acting_for(self, delegate: str, role: Role) -> Caller:
        """Return this peer as the one it asks for, with the lower of both roles.

        The peer vouches for its own users; whatever it says, the principal stays below its own name.
        Raises: InvalidRequest for what is no principal's name.
        """
        lowered = self.role.at_most(role)
        if not delegate:
            return msgspec.structs.replace(self, role=lowered)
        if not _DELEGATE.fullmatch(delegate):
            raise InvalidRequest("principal: this is no name of a principal", path="principal")
        return msgspec.structs.replace(self, principal=f"{self.principal}/{delegate}", role=lowered)


def is_peer(principal: str) -> bool:
    """Return whether it is a peer, or somebody for whom a peer asks."""
    return principal != LOCAL and ":" not in principal.partition("/")[0]


def account_of(principal: str) -> str:
    """Return the principal whose limits count: of all that a peer asks for others, the peer itself."""
    return principal if ":" in principal.partition("/")[0] else principal.partition("/")[0]


LOCAL_ADMIN = Caller(principal=LOCAL, role=Role.ADMIN)


class AuditSink(Protocol):
    """Records a call to `what`, about `on`: entered before the call acts, left with its outcome.

    `request` are the packed arguments as a peer sent them. A call that `will_be_refused` changes nothing, so that its
    record need not be durable before it goes on.
    """

    def __call__(
        self, caller: Caller, what: str, on: str = "", *, request: bytes = b"", will_be_refused: bool = False
    ) -> AbstractAsyncContextManager[None]: ...


def no_audit(
    caller: Caller, what: str, on: str = "", *, request: bytes = b"", will_be_refused: bool = False
) -> AbstractAsyncContextManager[None]:
    """Record nothing."""
    return nullcontext()
