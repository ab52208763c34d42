"""What a disk image is on the wire. Sizes are in bytes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from .secrets import NEVER

ImageRef = Annotated[str, Meta(min_length=1, max_length=512, description="name, name:tag, registry/name:tag or digest")]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a node. `digest` names the content: two names of one digest share one file.

    `manifest` is the registry's digest of an image that came from one or went there. `size` is the disk that a guest
    sees, `allocated` the space the base takes on this machine. A `damaged` one is not given to anybody: its file is not
    what the digest stands for; it can be pulled or imported anew, or removed. `owner` is the principal whose name it
    is, of an image without a name whoever added it; empty for the node's admin.
    """

    name: str
    tag: str
    digest: str
    manifest: str = ""
    size: int
    allocated: int
    created_at: datetime
    registry: str = "local"
    source: str = ""
    used_by: list[str] = []
    labels: dict[str, str] = {}
    damaged: bool = False
    owner: str = ""


Source = Annotated[str, Meta(min_length=1, max_length=2048, description="a name, a reference or an https address")]
LocalName = Annotated[str, Meta(max_length=512, description="what the image is called here; empty: as it is there")]


class RegistryCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A login of the caller's own, used for this request at this registry alone and never written down."""

    registry: Annotated[str, Meta(min_length=1, max_length=255, description="host or host:port")]
    username: Annotated[str, Meta(min_length=1, max_length=255)]
    password: Annotated[str, Meta(max_length=16384)]

    def __repr__(self) -> str:
        return f"RegistryCredentials(registry={self.registry!r})"


OwnCredentials = Annotated[
    RegistryCredentials | None,
    Meta(description="a login of your own; without it the node's, where it may be used"),
    NEVER,
]


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to fetch: a name of the catalogue, `registry/name:tag`, or an https address with its `sha256`.

    `raw` takes what cannot be recognised as a disk for a raw one.
    """

    image: Source
    name: LocalName = ""
    sha256: Annotated[str, Meta(max_length=64)] = ""
    raw: bool = False
    credentials: OwnCredentials = None


class PushRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which image to send, and the name `registry/name:tag` it is to have there. `dry_run` only tries the login."""

    image: ImageRef
    target: ImageRef
    dry_run: bool = False
    credentials: OwnCredentials = None


class CatalogueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A short name that can be pulled. `user` is who to log in as."""

    name: str
    source: str
    user: str
    about: str


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was sent to a registry: the name it has there, and the digest of its manifest.

    `manifest` is empty after a dry run.
    """

    image: Image
    target: str
    manifest: str = ""


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, or would be; `freed` is the space that it took, in bytes."""

    images: list[Image]
    freed: int
    dry_run: bool


class Fault(StrEnum):
    """What a check of the images finds. The first three are damage, which only a new pull or import heals."""

    DAMAGED = "damaged"
    CUT_SHORT = "cut_short"
    MISSING = "missing"
    STRAY = "stray"
    RESTORED = "restored"
    HEALED = "healed"
    INDEX = "index"
    ROW = "row"
    PERMISSIONS = "permissions"
    TEMPORARY = "temporary"
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was wrong: `message` says it to people; `names` and `vms` are those that the image has."""

    fault: Fault
    message: str
    mended: bool
    digest: str = ""
    names: list[str] = []
    vms: list[str] = []


class ImageCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of all images saw: how many disks, how many bytes of them were read, and what was wrong."""

    images: int
    bytes: int
    findings: list[Finding]
