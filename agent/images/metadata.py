"""What the database says of a base, once more beside its index: `idx/<digest>.json`. `image fsck` alone reads it.

The database is the truth; a metadata file is what its rows are made of again when it was lost. All of it is blocking.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from ...protocols.reference import Reference
from ..files import atomic_write
from .tag_index import Base, TagTarget

SUFFIX = ".json"
MAX_CARD = 1 << 20


class TagMetadata(msgspec.Struct, frozen=True):
    """One name of a base, the registry's digest of its manifest, and whose it is."""

    registry: str
    name: str
    tag: str
    manifest: str = ""
    owner: str = ""


class ImageMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a base beside its bytes; the sizes in bytes."""

    size: int
    created_at: datetime
    source: str
    labels: dict[str, str]
    names: list[TagMetadata]
    owner: str = ""

    @classmethod
    def of(cls, base: Base, names: Mapping[Reference, TagTarget]) -> ImageMetadata:
        return cls(
            size=base.size,
            created_at=base.created_at,
            source=base.source,
            labels=dict(base.labels),
            names=[
                TagMetadata(name.registry, name.name, name.tag, held.manifest, held.owner)
                for name, held in names.items()
            ],
            owner=base.owner,
        )

    def references(self, digest: str) -> dict[Reference, TagTarget]:
        """The names again."""
        return {
            Reference(registry=one.registry, name=one.name, tag=one.tag): TagTarget(digest, one.manifest, one.owner)
            for one in self.names
        }


def read_metadata(path: Path) -> ImageMetadata | None:
    """None when there is none that can be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_CARD), type=ImageMetadata)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def write_metadata(path: Path, metadata: ImageMetadata) -> None:
    """Raises: OSError."""
    atomic_write(path, msgspec.json.encode(metadata))
