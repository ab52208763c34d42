"""What a disk image is on the wire. Sizes are in bytes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

ImageRef = Annotated[str, Meta(min_length=1, max_length=512, description="name, name:tag, registry/name:tag or digest")]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a node. `digest` names the content: two names of one digest share one file.

    `manifest` is the registry's digest of an image that came from one or went there. `size` is the disk that a guest
    sees, `allocated` the space the base takes on this machine.
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
