"""`/api/v1/images`: the images of this node as Meda shows them."""

from __future__ import annotations

from ...agent.node import Node
from ...protocols.access import Caller, Role
from ...protocols.image import Image, ImageRef, Pruned, PullRequest, Pushed, PushRequest
from ...protocols.reference import parse_reference
from ...protocols.routes import rest
from ...protocols.size import short_size
from ...protocols.vm import Vm
from .bodies import Done, ImageCreate, ImageInfo, ImageList, ImagePull, ImagePush, ImageRun
from .image_names import local_image
from .specs import image_ref, name_after, push_target, read_user_data, tagged, vm_spec
from .table import TABLE
from .vms import size_of, vm_info


def image_info(image: Image) -> ImageInfo:
    return ImageInfo(
        name=image.name or image.digest,
        tag=image.tag,
        registry=image.registry,
        size=short_size(image.size),
        created=image.created_at,
    )


class MedaImages:
    """The images of this node.

    An instance serves one caller.
    """

    def __init__(self, node: Node, caller: Caller) -> None:
        self._node, self._caller = node, caller

    @rest("GET", "/images", Role.VIEWER)
    async def list_images(self) -> ImageList:
        """List the images."""
        found: list[Image] = await self._node.call(self._caller, TABLE["list_images"], {})
        return ImageList(images=[image_info(image) for image in found], count=len(found))

    @rest("POST", "/images", Role.OPERATOR)
    async def create_image(self, request: ImageCreate) -> Done:
        """Make an image of a VM's disk."""
        name = image_ref(tagged(request.name, request.tag), request.registry, request.org)
        await self._node.call(self._caller, TABLE["capture_image"], {"vm": request.from_vm, "name": name})
        return Done(message=f"Successfully created image: {tagged(request.name, request.tag)}")

    @rest("POST", "/images/prune", Role.OPERATOR)
    async def prune_images(self, all: bool = False, force: bool = False) -> Done:
        """Remove images that no VM stands on: those without a name, or with `all` every one of them."""
        gone: Pruned = await self._node.call(self._caller, TABLE["prune_images"], {"all": all})
        freed = short_size(gone.freed)
        return Done(message=f"Successfully pruned images: {len(gone.images)} removed, {freed} freed")

    @rest("POST", "/images/pull", Role.OPERATOR)
    async def pull_image(self, request: ImagePull) -> Done:
        """Fetch an image from a registry or the catalogue."""
        wanted = PullRequest(image=image_ref(request.image, request.registry, request.org))
        await self._node.call(self._caller, TABLE["pull_image"], {"request": wanted})
        return Done(message=f"Successfully pulled image: {request.image}")

    @rest("POST", "/images/push", Role.OPERATOR)
    async def push_image(self, request: ImagePush) -> Done:
        """Send an image to a registry."""
        target = push_target(request.image, request.registry)
        name = await local_image(self._node, self._caller, request.name, parse_reference(target).tag)
        sent = PushRequest(image=name, target=target, dry_run=request.dry_run)
        pushed: Pushed = await self._node.call(self._caller, TABLE["push_image"], {"request": sent})
        done = "Successfully pushed image" if pushed.manifest else "Nothing was sent; the registry would take image"
        return Done(message=f"{done}: {request.image}")

    @rest("POST", "/images/run", Role.OPERATOR)
    async def run_image(self, request: ImageRun) -> Done:
        """Create a VM from an image, which is fetched if need be, and start it unless `no_start` is set."""
        image = image_ref(request.image, request.registry, request.org)
        image = await local_image(self._node, self._caller, image)
        user_data = await read_user_data(request.user_data, self._node.config.api.allow_user_data_dir)
        name = request.name or name_after(image, self._caller.idempotency_key)
        size = await size_of(self._node, self._caller, image)
        spec = vm_spec(request, name, image, size, user_data, start=not request.no_start)
        vm: Vm = await self._node.call(self._caller, TABLE["create_vm"], {"spec": spec})
        action = "created" if request.no_start else "created and started"
        return Done(message=f"Successfully {action} VM from image: {request.image}", vm=vm_info(vm))

    @rest("DELETE", "/images/<image>", Role.OPERATOR)
    async def remove_image(self, image: ImageRef) -> Done:
        """Remove an image that no VM stands on."""
        name = await local_image(self._node, self._caller, image)
        await self._node.call(self._caller, TABLE["remove_image"], {"image": name})
        return Done(message=f"Successfully removed image: {image}")
