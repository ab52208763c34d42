"""Who we are to a registry: credentials from the configuration or the docker configuration file, and its challenges."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....protocols.errors import RegistryFailed
from ..settings import RegistrySettings

_MAX_FILE = 1 << 20
_SCHEME = re.compile(r"(?:^|,\s*)(Bearer|Basic)\s+", re.IGNORECASE)
_PARAMETER = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user's name and secret; never shown."""

    username: str
    password: str

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
    return _from_docker(host)


def _from_docker(host: str) -> Credentials | None:
    folder = os.environ.get("DOCKER_CONFIG") or str(Path("~/.docker").expanduser())
    path = Path(folder) / "config.json"
    try:
        if path.stat().st_size > _MAX_FILE:
            return None
        document: Any = json.loads(path.read_bytes())
        names = [host] if host != "registry-1.docker.io" else [host, "https://index.docker.io/v1/", "docker.io"]
        entry = next(document["auths"][name] for name in names if name in document["auths"])
        username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (OSError, ValueError, LookupError, TypeError, RecursionError, StopIteration, binascii.Error):
        return None
    return Credentials(username, password)
