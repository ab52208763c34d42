"""What the agent asks of an image store."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from ...protocols.image import Image
from ...protocols.operation import Progress

Report = Callable[[Progress], None]


class ImageStore(Protocol):
    """Bases are sparse raw files, immutable, named by what they hold; a name and tag point to a digest.

    Raises, where nothing else is said: InsufficientResources when the disk is full (and then nothing is left behind).
    """

    async def list_images(self) -> Sequence[Image]: ...

    async def get_image(self, ref: str) -> Image:
        """`ref` is `name`, `name:tag`, `registry/name:tag` or a digest. Raises: ImageNotFound."""
        ...

    async def add_image(
        self, ref: str, content: AsyncIterable[bytes], *, report: Report, source: str = "import"
    ) -> Image:
        """Take a raw or qcow2 disk in, whole or not at all.

        Raises: InvalidRequest for a disk with a backing file, a data file, encryption, or an absurd size; ImageExists.
        """
        ...

    async def remove_image(self, ref: str, *, used_by: Callable[[str], Sequence[str]]) -> Image:
        """Forget a name, and the base when no name is left. Raises: ImageInUse naming what `used_by(digest)` tells."""
        ...

    async def make_overlay(self, digest: str, path: Path, size: int) -> None:
        """Write a qcow2 overlay of `size` bytes at `path` on the base, durable when it returns. Idempotent.

        Raises: ImageDamaged when the base is missing, InvalidRequest when `size` is less than the base's.
        """
        ...
