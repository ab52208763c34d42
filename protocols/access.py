"""Who is calling, and what the caller may do."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .errors import Forbidden


class Role(StrEnum):
    """What a principal may do on a node; each role includes the ones before it.

    `VIEWER` reads. `OPERATOR` also creates, and changes what it owns. `ADMIN` does everything.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, needed: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One call's caller, as the face that took the call has established it.

    `principal` is `local`, `token:<name>` or a peer ID; it becomes the owner of what the call creates.
    `idempotency_key` makes a repeated mutation the same operation; None lets the operation make its own.
    `detach` asks for the operation instead of its result (`Prefer: respond-async`).
    """

    principal: str
    role: Role
    idempotency_key: str | None = None
    detach: bool = False

    def require(self, needed: Role, what: str) -> None:
        """Raises: Forbidden."""
        if not self.role.includes(needed):
            raise Forbidden(f"{what} needs the role {needed}; this caller has {self.role}", role_needed=str(needed))

    def may_change(self, owner: str) -> bool:
        """Operators change what they own; admins change everything."""
        return self.role is Role.ADMIN or (self.role is Role.OPERATOR and owner == self.principal)


LOCAL_ADMIN = Caller(principal="local", role=Role.ADMIN)
