"""Who we are to a registry: credentials from the configuration or the docker configuration file, and its challenges."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....protocols.access import Caller
from ....protocols.errors import RegistryFailed
from ....protocols.image import RegistryCredentials
from ..settings import RegistrySettings
from .docker_config import IDENTITY_TOKEN, docker_login

DOCKER_HUB = "registry-1.docker.io"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", DOCKER_HUB})
_SCHEME = re.compile(r"(?:^|,\s*)(Bearer|Basic)\s+", re.IGNORECASE)
_PARAMETER = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user's name and secret; never shown. The name may say that the secret is an identity token."""

    username: str
    password: str

    @property
    def is_identity_token(self) -> bool:
        return self.username == IDENTITY_TOKEN

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for. `scheme` is `bearer` or `basic`."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenge(header: str) -> Challenge:
    """The challenge that is answered here, a bearer's before a basic one. Raises: RegistryFailed."""
    starts = list(_SCHEME.finditer(header))
    found: dict[str, Challenge] = {}
    ends = [start.start() for start in starts[1:]] + [len(header)]
    for start, end in zip(starts, ends, strict=False):
        text = header[start.end() : end]
        parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(text)}
        found.setdefault(start[1].lower(), Challenge(start[1].lower(), parameters))
    for scheme in ("bearer", "basic"):
        if scheme in found:
            return found[scheme]
    raise RegistryFailed("the registry asks for a kind of login that is not known here")


def may_use(caller: Caller, host: str, settings: Sequence[RegistrySettings], *, push: bool) -> bool:
    """Return whether the node's login at `host` serves the caller: its user and admins, others as it is configured."""
    if caller.uses_node_credentials:
        return True
    listed = [role for entry in settings if entry.host == host for role in (entry.push_roles if push else entry.roles)]
    return any(map(caller.role.includes, listed))


def own_credentials(host: str, given: RegistryCredentials) -> Credentials | None:
    """Return what the caller gave for its request, if it is for this host."""
    return Credentials(given.username, given.password) if registry_host(given.registry) == host else None


def registry_host(registry: str) -> str:
    """Return the host that serves a registry of that name."""
    return DOCKER_HUB if registry in _HUB_NAMES else registry


def find_credentials(host: str, settings: Sequence[RegistrySettings]) -> Credentials | None:
    """The credentials for exactly this host. Blocking. Raises: RegistryFailed when a configured file cannot be read."""
    for entry in settings:
        if entry.host == host and entry.username:
            try:
                secret = Path(entry.password_file).read_text().strip() if entry.password_file else ""
            except OSError as error:
                raise RegistryFailed(
                    f"the password_file of the registry {host} cannot be read: {error.strerror}"
                ) from None
            return Credentials(entry.username, secret)
    return docker_credentials(host)


def docker_credentials(host: str) -> Credentials | None:
    """Return what docker's configuration of this user has for the host, or a credential helper of it. Blocking."""
    names = [host] if host != DOCKER_HUB else [host, "https://index.docker.io/v1/", "docker.io"]
    login = docker_login(names)
    return Credentials(*login) if login else None
