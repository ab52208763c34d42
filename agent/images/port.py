"""What the agent asks of an image store."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ...protocols.access import LOCAL_ADMIN, Caller
from ...protocols.image import CatalogueEntry, Image, ImageCheck, Pushed, RegistryCredentials
from ...protocols.operation import Progress
from ...protocols.reference import Reference
from .boot import BootNeeds

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Requester:
    """For whom an image comes or goes: the owner of what is new, bound by the owners of what is there.

    `credentials` are a login of the caller's own at a registry; without them the node's is used where it may be.
    """

    caller: Caller = LOCAL_ADMIN
    credentials: RegistryCredentials | None = None


NODE = Requester()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image comes from: the words for people, a registry's manifest if there is one, labels to keep.

    `raw` takes what cannot be recognised as a disk for a raw one.
    """

    source: str = "import"
    manifest: str = ""
    labels: Mapping[str, str] | None = None
    requester: Requester = NODE
    raw: bool = False

    @property
    def caller(self) -> Caller:
        return self.requester.caller


IMPORTED = Origin()


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """An image that comes in: what it is to be called, where it comes from, and who hears how far it is."""

    name: Reference
    origin: Origin
    report: Report

    def labelled(self, labels: Mapping[str, str]) -> ImportRequest:
        """The same with more labels; those that it has stay as they are."""
        return replace(self, origin=replace(self.origin, labels={**labels, **(self.origin.labels or {})}))


@dataclass(frozen=True, slots=True)
class Overlay:
    """The disk of a VM that does not run: `path` is an overlay on the base `digest`, and nobody writes to it."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Export:
    """A raw disk served by NBD on a unix socket under the name `name`; `digest` is the base that it was made from."""

    socket: Path
    name: str
    digest: str


class ImageStore(Protocol):
    """Bases are sparse raw files, immutable, named by what they hold; a name and tag point to a digest.

    Raises, where nothing else is said: InsufficientResources when the disk is full (and then nothing is left behind).
    """

    async def list_images(self) -> Sequence[Image]:
        """A row for each name, and one for each base that has none."""
        ...

    async def get_image(self, ref: str) -> Image:
        """`ref` is `name`, `name:tag`, `registry/name:tag` or a digest.

        Raises: ImageNotFound, InvalidRequest for what is no image's name.
        """
        ...

    async def add_image(
        self,
        ref: str,
        content: AsyncIterable[bytes],
        *,
        report: Report,
        origin: Origin = IMPORTED,
        replace: bool = False,
    ) -> Image:
        """Take a raw or qcow2 disk in, compressed or not, whole or not at all.

        A name that has this very content already is no error, one that has another needs `replace`: it moves then.
        Raises: InvalidRequest for what is no disk, a disk with a backing file, a data file, encryption, or an absurd
        size; ImageExists; Forbidden when the name to be moved is another's.
        """
        ...

    async def add_disk(
        self, ref: str, disk: Overlay | Export, size: int, *, report: Report, origin: Origin, reset: bool = False
    ) -> Image:
        """Make an image of a VM's disk of `size` bytes; `reset` takes the machine id and SSH host keys out of it.

        Raises: ImageExists, ImageDamaged when an overlay's base is missing, WrongState when the disk is not what it
        should be, InvalidRequest when it cannot be read to its end or has no file system that `reset` understands.
        """
        ...

    async def remove_image(
        self, ref: str, *, used_by: Callable[[str], Sequence[str]], caller: Caller = LOCAL_ADMIN
    ) -> Image:
        """Forget a name, and the base when no name is left; a digest forgets all its names.

        `used_by(digest)` names the VMs that stand on the base, the ones being created included. It is asked while no
        overlay can be made, right before the base goes.
        Raises: ImageNotFound, ImageInUse naming the VMs, Forbidden when a name is another's than the caller's.
        """
        ...

    async def prune_images(
        self, *, used_by: Callable[[str], Sequence[str]], everything: bool, dry_run: bool, caller: Caller = LOCAL_ADMIN
    ) -> Sequence[Image]:
        """Remove the caller's bases that no VM stands on: those without a name, or with `everything` all of them.

        What was removed, or what would be with `dry_run`.
        """
        ...

    async def fsck_images(
        self, *, used_by: Callable[[str], Sequence[str]], report: Report, caller: Caller = LOCAL_ADMIN
    ) -> ImageCheck:
        """Read every disk again, and make anew all that is kept beside them; what cannot be mended is named.

        A damaged disk stays in its place, for the VMs that stand on it, but nothing is made of it any more until it
        is taken in anew. What is left over is removed for an admin alone; others see it named.
        """
        ...

    @property
    def problems(self) -> Sequence[str]:
        """What is known to be wrong, in sentences for whoever asks how the node is."""
        ...

    async def boot_needs(self, digest: str) -> BootNeeds:
        """Return what the base's disk needs to boot. Raises: ImageDamaged when the base is missing."""
        ...

    async def make_overlay(self, digest: str, path: Path, size: int) -> None:
        """Write a qcow2 overlay of `size` bytes at `path` on the base, durable when it returns.

        An overlay of this base and size that is there already stays as it is, with all that a guest wrote to it.
        Raises: ImageDamaged when the base is missing or cut short, InvalidRequest when `size` is less than the base's,
        WrongState when something else is at `path`.
        """
        ...


class ImageExchange(Protocol):
    """The way of images from and to registries and other servers.

    Raises, where nothing else is said: RegistryFailed when the other side fails or cannot be trusted, AddressRefused
    when it is inside this node's network and the configuration does not list it,
    InsufficientResources when the disk is full (and then nothing is left behind), InvalidRequest for a bad name.
    """

    async def find_image(self, ref: str) -> Image:
        """The local image that `ref` means, also by its short name. Raises: ImageNotFound."""
        ...

    def catalogue(self) -> Sequence[CatalogueEntry]:
        """The short names that can be pulled."""
        ...

    def knows(self, ref: str) -> bool:
        """Whether a pull would know where to look for `ref`. Raises: InvalidRequest."""
        ...

    async def pull_image(
        self,
        ref: str,
        *,
        report: Report,
        name: str = "",
        sha256: str = "",
        requester: Requester = NODE,
        raw: bool = False,
    ) -> Image:
        """Fetch what `ref` means: a catalogue's name, a reference at a registry, or an https address with `sha256`.

        It is called `name` here, else as it is called there; a name that stands for an older version moves on. What is
        here already is not fetched again, and two pulls of one image fetch it once. `raw` as in `Origin`.
        Raises: ImageNotFound, InvalidRequest for what is no disk, Forbidden when the name stands for another image of
        another owner.
        """
        ...

    async def push_image(
        self, ref: str, target: str, *, report: Report, dry_run: bool = False, requester: Requester = NODE
    ) -> Pushed:
        """Send a local image to the registry that `target` names; `dry_run` only tries the login.

        Raises: ImageNotFound, ImageDamaged.
        """
        ...
