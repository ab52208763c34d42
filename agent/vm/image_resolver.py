"""Where an image comes from: this node, else the fleet, else the catalogue or a registry.

For a VM, fetching it is part of the operation which makes the VM.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from ...protocols.access import LOCAL as LOCAL_USER
from ...protocols.access import Caller
from ...protocols.errors import (
    Forbidden,
    ImageDamaged,
    ImageNotFound,
    InvalidRequest,
    NotFound,
    PeerMisbehaved,
    PeerUnreachable,
    Unavailable,
    Unsupported,
)
from ...protocols.events import ImageAdded
from ...protocols.image import Image, PullRequest
from ...protocols.reference import LOCAL, parse_reference
from ...protocols.size import GIB
from ...protocols.vm import VmSpec
from ..events import EventLog
from ..images.port import ImageExchange, ImageStore, Report, Requester

log = structlog.get_logger(__name__)

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """For whom an image is fetched, and what it is to be called: `name`, or as there where it is empty."""

    caller: Caller
    name: str = ""
    raw: bool = False


class Fleet(Protocol):
    """The images of the peers."""

    async def has(self, ref: str) -> bool:
        """Whether a peer has the image, or one may that was reachable a moment ago. Raises: InvalidRequest."""
        ...

    async def fetch(self, ref: str, asked: Asked, report: Report, *, wait: bool) -> Image | None:
        """Fetch it from those that have it; None when nobody has it.

        `wait`: peers that were reachable a moment ago are waited for before it is said that nobody has it.
        """
        ...


class ImageResolver:
    """`reserved` holds the VMs that are being made: their names, and the digests of their images, empty until known.

    An image that is reserved counts as used: it is not removed.
    """

    def __init__(self, store: ImageStore, exchange: ImageExchange, fleet: Fleet, events: EventLog) -> None:
        self.reserved: dict[str, str] = {}
        self._store, self.exchange, self._fleet, self._events = store, exchange, fleet, events

    async def find(self, ref: str) -> Image | None:
        """The image if it is here and whole, None where a fetch is worth trying.

        Raises: ImageNotFound, ImageDamaged, InvalidRequest.
        """
        try:
            image = await self.exchange.find_image(ref)
        except ImageNotFound:
            if await self._known(ref):
                return None
            raise
        if not image.damaged:
            return image
        if await self._known(ref):
            return None
        raise ImageDamaged(
            f"the disk of the image '{ref}' is damaged; import it anew, or remove it", digest=image.digest
        )

    async def _known(self, ref: str) -> bool:
        return self.exchange.knows(ref) or await self._fleet.has(ref)

    async def pull(self, asked: PullRequest, report: Report, caller: Caller) -> Image:
        """Fetch an image: from the fleet if it has no registry in its name and is not here, else from where it is from.

        Raises: ImageNotFound, RegistryFailed, InsufficientResources, InvalidRequest, what peers say, and Forbidden when
        its name stands for another image of another owner.
        """
        ref, requester = asked.image, Requester(caller, asked.credentials)
        plain = not asked.sha256 and "://" not in ref and parse_reference(ref).registry == LOCAL
        # One that is here is asked for to be brought up to date: by whoever publishes it, if anybody does.
        if plain and not (self.exchange.knows(ref) and await self._is_here(asked.name or ref)):
            return await self._fetch(ref, asked.name, report, requester, raw=asked.raw)
        return await self.exchange.pull_image(
            ref, report=report, name=asked.name, sha256=asked.sha256, requester=requester, raw=asked.raw
        )

    async def _is_here(self, ref: str) -> bool:
        with suppress(ImageNotFound):
            return not (await self.exchange.find_image(ref)).damaged
        return False

    async def _fetch(self, ref: str, name: str, report: Report, requester: Requester, *, raw: bool = False) -> Image:
        """From the fleet, else from the catalogue or a registry."""
        try:
            asked = Asked(requester.caller, name, raw)
            image = await self._fleet.fetch(ref, asked, report, wait=not self.exchange.knows(ref))
        except (PeerUnreachable, PeerMisbehaved, Forbidden, NotFound, Unavailable, Unsupported) as error:
            if not self.exchange.knows(ref):
                raise
            log.warning("the fleet cannot give an image", image=ref, why=error.message)
            image = None
        return image or await self.exchange.pull_image(ref, report=report, name=name, requester=requester, raw=raw)

    async def ensure(self, spec: VmSpec, report: Report, caller: Caller) -> Image:
        """The image of a VM that is being made, fetched if it is not here, and reserved for the VM.

        Raises: ImageNotFound, RegistryFailed, InsufficientResources, InvalidRequest when the VM's disk is too small.
        """
        for _ in range(ATTEMPTS):
            image = await self.find(spec.image)
            if image is None:
                image = await self._fetch(spec.image, "", report, Requester(caller))
                self._events.publish(ImageAdded.of(image), image.owner or LOCAL_USER)
            self.reserved[spec.name] = image.digest
            check_disk_size(spec, image)
            # Between the fetch and the reservation it may have been removed.
            with suppress(ImageNotFound):
                return await self._store.get_image(image.digest)
        raise ImageNotFound(f"the image '{spec.image}' is removed as often as it is fetched; try again later")


def check_disk_size(spec: VmSpec, image: Image) -> None:
    """Raises: InvalidRequest."""
    if spec.disk_size * GIB < image.size:
        least = -(-image.size // GIB)
        raise InvalidRequest(f"disk_size: the image needs at least {least} GiB", path="disk_size", least=least)
