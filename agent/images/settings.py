"""What the images room asks of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...protocols.access import Role


class RegistrySettings(Protocol):
    """What the configuration says of a registry. `host` may have a port, `ca_file` replaces the system's own.

    `roles` and `push_roles` are those of peers and of callers that are no admins for whose pulls and pushes the node's
    login is used.
    """

    @property
    def host(self) -> str: ...
    @property
    def insecure(self) -> bool: ...
    @property
    def username(self) -> str: ...
    @property
    def password_file(self) -> str: ...
    @property
    def ca_file(self) -> str: ...
    @property
    def roles(self) -> Sequence[Role]: ...
    @property
    def push_roles(self) -> Sequence[Role]: ...
