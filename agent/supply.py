"""Where a VM's image comes from: this node, else a fetch that is part of the operation which makes the VM."""

from __future__ import annotations

from contextlib import suppress

from ..protocols.errors import ImageDamaged, ImageNotFound, InvalidRequest
from ..protocols.image import Image
from ..protocols.vm import VmSpec
from .events import EventLog
from .images.port import ImageExchange, ImageStore, Report

GIB = 1 << 30
ATTEMPTS = 3


class Supply:
    """`promised` holds the VMs that are being made: their names, and the digests of their images, empty until known.

    Whoever asks which VMs stand on an image asks here too: what is promised is not removed.
    """

    def __init__(self, store: ImageStore, exchange: ImageExchange, events: EventLog) -> None:
        self.promised: dict[str, str] = {}
        self._store, self._exchange, self._events = store, exchange, events

    async def find(self, ref: str) -> Image | None:
        """The image if it is here and whole, None where a fetch is worth trying.

        Raises: ImageNotFound, ImageDamaged, InvalidRequest.
        """
        try:
            image = await self._exchange.find_image(ref)
        except ImageNotFound:
            if self._exchange.knows(ref):
                return None
            raise
        if not image.damaged:
            return image
        if self._exchange.knows(ref):
            return None
        raise ImageDamaged(
            f"the disk of the image '{ref}' is damaged; import it anew, or remove it", digest=image.digest
        )

    async def bring(self, spec: VmSpec, report: Report) -> Image:
        """The image of a VM that is being made, fetched if it is not here, and promised to the VM.

        Raises: ImageNotFound, RegistryFailed, InsufficientResources, InvalidRequest when the VM's disk is too small.
        """
        for _ in range(ATTEMPTS):
            image = await self.find(spec.image)
            if image is None:
                image = await self._exchange.pull_image(spec.image, report=report)
                data = {"name": image.name, "tag": image.tag, "digest": image.digest}
                self._events.publish("image.added", data)
            self.promised[spec.name] = image.digest
            check_disk_size(spec, image)
            # Between its arrival and the promise it may have been removed.
            with suppress(ImageNotFound):
                return await self._store.get_image(image.digest)
        raise ImageNotFound(f"the image '{spec.image}' is removed as often as it is fetched; try again later")


def check_disk_size(spec: VmSpec, image: Image) -> None:
    """Raises: InvalidRequest."""
    if spec.disk_size * GIB < image.size:
        least = -(-image.size // GIB)
        raise InvalidRequest(f"disk_size: the image needs at least {least} GiB", path="disk_size", least=least)
