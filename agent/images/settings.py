"""What the images room asks of the configuration."""

from __future__ import annotations

from typing import Protocol


class RegistrySettings(Protocol):
    """What the configuration says of a registry. `host` may have a port, `ca_file` replaces the system's own."""

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
