"""The bodies of Meda's API: the names, types and defaults that its clients know."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...protocols.image import ImageRef
from ...protocols.size import SizeText
from ...protocols.vm import Forward, VmName, VmRef, check_name

Cpus = Annotated[int, Meta(ge=1, le=1024)]
Registry = Annotated[str, Meta(min_length=1, max_length=255, description="host, or host:port")]
Org = Annotated[str, Meta(min_length=1, max_length=128, description="the owner's name at the registry")]
Tag = Annotated[str, Meta(min_length=1, max_length=128)]
UserData = Annotated[
    str, Meta(max_length=65536, description="begins with #cloud-config or #!; a path only where the node allows it")
]
# What stands where a text is due and there is nothing to say.
NO_IP, NONE = "N/A", "none"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A field that may be null is then as if it were left out."""


class VmCreate(Request, frozen=True, kw_only=True):
    """`force` deletes a VM that has the name already."""

    name: VmName
    user_data: UserData | None = None
    force: bool = False
    memory: SizeText | None = None
    cpus: Cpus | None = None
    disk: SizeText | None = None

    def __post_init__(self) -> None:
        check_name(self.name)


class ImageRun(Request, frozen=True, kw_only=True):
    """Without a `name` the VM is named after the image; the answer tells how."""

    image: ImageRef
    name: VmName | None = None
    registry: Registry | None = None
    org: Org | None = None
    user_data: UserData | None = None
    no_start: bool = False
    memory: SizeText | None = None
    cpus: Cpus | None = None
    disk: SizeText | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)


class ImagePull(Request, frozen=True, kw_only=True):
    image: ImageRef
    registry: Registry | None = None
    org: Org | None = None


class ImagePush(Request, frozen=True, kw_only=True):
    """`name` is the image here, `image` what it is to be called at the registry; `dry_run` only tries the login."""

    name: ImageRef
    image: ImageRef
    registry: Registry | None = None
    dry_run: bool = False


class ImageCreate(Request, frozen=True, kw_only=True):
    """`from_vm` names the VM whose disk the image becomes; one that runs goes on."""

    name: ImageRef
    tag: Tag = "latest"
    registry: Registry | None = None
    org: Org | None = None
    from_vm: VmRef


class VmInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`ip` is "N/A" while it is not known; `devices` names what of the machine is handed to the VM."""

    name: str
    state: str
    ip: str
    vcpus: str
    memory: str
    disk: str
    devices: list[str]
    created: datetime


class VmList(msgspec.Struct, frozen=True, kw_only=True):
    vms: list[VmInfo]
    count: int


class VmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`guest_ip` is what the guest calls itself, "none" while that is not known, and `subnet` its network.

    `vm_dir` is a name and no path of the node; `tap_device` is "none" where the guest has none.
    """

    guest_ip: str
    subnet: str
    mac: str
    tap_device: str
    memory: str
    disk_size: str
    vm_dir: str


class VmDetail(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: str
    ip: str | None
    details: VmFacts


class VmAddress(msgspec.Struct, frozen=True, kw_only=True):
    vm: str
    ip: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of every change."""

    success: bool = True
    message: str
    vm: VmInfo | None = None


class ForwardList(msgspec.Struct, frozen=True, kw_only=True):
    forwards: list[Forward]
    count: int


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    tag: str
    registry: str
    size: str
    created: datetime


class ImageList(msgspec.Struct, frozen=True, kw_only=True):
    images: list[ImageInfo]
    count: int


class HealthInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is "healthy", or "degraded" where something is missing."""

    status: str
    version: str
    timestamp: datetime


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """GiB in whole numbers, rounded so that no more is offered than there is."""

    mem_gb: int
    cpu: int
    disk_gb: int


class CapacityInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`total` less `reserve`, less what running VMs hold, less what is about to be taken."""

    total: Amount
    reserve: Amount
    committed: Amount
    in_flight: Amount
    available: Amount


class ApiError(msgspec.Struct, frozen=True, kw_only=True):
    """`details.message` is the sentence, `details.reason` the word that the dialect twinshare has for it."""

    error: str
    code: str
    details: dict[str, Any]
