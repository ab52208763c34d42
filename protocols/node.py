"""A node: its health, its capacity, its tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from .access import Role

PRINCIPAL_NAME_PATTERN = "^[A-Za-z0-9._-]{1,64}$"


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of each thing that can run out: memory in MiB, virtual CPUs, disk in GiB."""

    memory: int
    cpu: int
    disk: int


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """`total` less `reserve`, less what VMs hold (`committed`) and operations are about to take (`in_flight`)."""

    total: Resources
    reserve: Resources
    committed: Resources
    in_flight: Resources
    available: Resources


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is `ok`, or `degraded` with a sentence for each thing that is missing in `problems`."""

    status: str
    name: str
    version: str
    peer_id: str
    hypervisor: str
    accelerator: str
    p2p: str
    vms: int
    uptime: int
    problems: list[str] = []


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as the node sees it: `local` for its own user, `token:NAME`; and the role."""

    principal: str
    role: Role


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`expires_in` is in seconds; None never expires."""

    name: Annotated[str, Meta(pattern=PRINCIPAL_NAME_PATTERN)]
    role: Role = Role.OPERATOR
    expires_in: Annotated[int, Meta(ge=1, le=10 * 366 * 86400)] | None = None

    def __post_init__(self) -> None:
        if self.name.endswith("\n"):
            raise ValueError("name must not end with a line end")


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is listed: only the call that makes it returns `secret`."""

    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    secret: str | None = None
