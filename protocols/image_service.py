"""The operations on images; see `services.py` for how the table is read."""

from __future__ import annotations

from typing import Protocol

from .access import Role
from .bodies import CatalogueList, ImageList
from .image import CatalogueEntry, Image, ImageCheck, ImageRef, Pruned, PullRequest, Pushed, PushRequest
from .routes import rest
from .vm import VmRef


class ImageService(Protocol):
    """The images of one node. Uploading one is a stream and so has a route of its own: `POST /api/image/import`."""

    @rest("GET", "/image", Role.VIEWER, answer=ImageList)
    async def list_images(self) -> list[Image]:
        """List the images of the node."""
        ...

    @rest("POST", "/image", Role.OPERATOR)
    async def capture_image(self, vm: VmRef, name: ImageRef, reset_identity: bool = False) -> Image:
        """Make an image of a VM's disk; one that runs goes on, and its disk is taken as it is at one instant.

        `reset_identity` takes the machine id and the SSH host keys out of the image; the VM keeps its own. It needs
        an ext2, ext3 or ext4 file system.
        Raises: InvalidRequest when there is none, ImageExists when `name` is another image, WrongState when the VM
        stops meanwhile, InsufficientResources.
        """
        ...

    @rest("POST", "/image/prune", Role.OPERATOR)
    async def prune_images(self, all: bool = False, dry_run: bool = False) -> Pruned:
        """Remove images that no VM stands on: those without a name, or with `all` every one of them."""
        ...

    @rest("POST", "/image/fsck", Role.OPERATOR)
    async def fsck_images(self) -> ImageCheck:
        """Read every disk again, and mend what is kept beside them: names, indexes, permissions.

        A disk that is not what its digest says is named and not given to anybody until it is pulled or imported anew.
        """
        ...

    @rest("POST", "/image/build-tiny", Role.OPERATOR)
    async def build_tiny(self) -> Image:
        """Build `tiny:latest`, a guest of a few MB, from the distribution's packages."""
        ...

    @rest("POST", "/image/pull", Role.OPERATOR)
    async def pull_image(self, request: PullRequest) -> Image:
        """Fetch an image from the fleet, the catalogue, a registry or an https address; only what is not here yet.

        Raises: ImageNotFound, RegistryFailed, AddressRefused, InsufficientResources.
        """
        ...

    @rest("POST", "/image/push", Role.OPERATOR)
    async def push_image(self, request: PushRequest) -> Pushed:
        """Send an image to a registry. Raises: ImageNotFound, ImageDamaged, RegistryFailed, AddressRefused."""
        ...

    @rest("GET", "/catalogue", Role.VIEWER, answer=CatalogueList)
    async def list_catalogue(self) -> list[CatalogueEntry]:
        """List the short names that can be pulled."""
        ...

    @rest("GET", "/image/<image>", Role.VIEWER)
    async def get_image(self, image: ImageRef) -> Image:
        """Show one image."""
        ...

    @rest("DELETE", "/image/<image>", Role.OPERATOR)
    async def remove_image(self, image: ImageRef) -> Image:
        """Remove an image's name, and its disk when no other name is left. Raises: ImageInUse naming the VMs."""
        ...
