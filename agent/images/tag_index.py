"""Which names stand for which bases: the rules that every image store keeps. No files and no clock are known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from datetime import datetime

from ...protocols.access import Caller
from ...protocols.errors import ImageExists, ImageInUse, ImageNotFound, InvalidRequest
from ...protocols.image import Image
from ...protocols.reference import Reference, parse_reference
from .port import Origin

UsedBy = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One disk content. Sizes in bytes: `size` is what the guest sees, `allocated` what it takes here.

    The file of a `damaged` one is missing or is not what the digest stands for. `owner` is who added it first, "" the
    node's admin.
    """

    digest: str
    size: int
    allocated: int
    created_at: datetime
    source: str
    labels: Mapping[str, str] = field(default_factory=dict)
    damaged: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class TagTarget:
    """What a name stands for: the content and, of an image from or at a registry, the manifest's `sha256:…`.

    `owner` is the principal whose name it is, "" the node's admin.
    """

    digest: str
    manifest: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal takes away: `base` is None while other names keep it."""

    image: Image
    names: Mapping[Reference, TagTarget]
    base: Base | None


@dataclass(slots=True)
class TagIndex:
    """Names in the order they were given. A base may be without a name: a name that moved on left it behind."""

    disks: dict[str, Base] = field(default_factory=dict)
    names: dict[Reference, TagTarget] = field(default_factory=dict)

    def images(self) -> list[Image]:
        """One row for each name, and one without name and tag for each base that has none."""
        named = [self._image(name, self.disks[held.digest]) for name, held in self.names.items()]
        return named + [self._image(None, base) for base in self._unnamed()]

    def find(self, ref: str) -> tuple[Reference | None, Base]:
        """Raises: ImageNotFound, InvalidRequest."""
        wanted = parse_reference(ref)
        for name, held in self.names.items():
            if wanted.digest in {"", held.digest, held.manifest} and (wanted.is_digest or _names(wanted, name)):
                return name, self.disks[held.digest]
        if wanted.is_digest and wanted.digest in self.disks:
            return None, self.disks[wanted.digest]
        raise ImageNotFound(f"there is no image '{ref}' on this node; import, pull or build it first")

    def of_manifest(self, manifest: str) -> str | None:
        """The digest of the image that a manifest stands for, if it is here."""
        return next((held.digest for held in self.names.values() if manifest and held.manifest == manifest), None)

    def whole(self, digest: str) -> Base | None:
        """The base if it is here and not known to be damaged."""
        base = self.disks.get(digest)
        return None if base is None or base.damaged else base

    def replace_base(self, base: Base) -> None:
        """What is known of a content has changed; its names stay."""
        self.disks[base.digest] = base

    def get(self, ref: str) -> Image:
        return self._image(*self.find(ref))

    def bind(self, name: Reference, digest: str, origin: Origin, *, replace: bool) -> TagTarget:
        """Decide what the name is to be when `origin`'s caller lets it stand for `digest`; nothing is changed.

        Whoever moves a name owns it; one that stands for this content already stays as it is and whose it is.
        Raises: ImageExists when it stands for another content and may not be moved, Forbidden when it is another's.
        """
        held, caller = self.names.get(name), origin.caller
        if held is None or (held.digest != digest and replace and caller.may_change(held.owner)):
            return TagTarget(digest, origin.manifest, caller.principal)
        if held.digest != digest:
            if not replace:
                raise ImageExists(f"'{name}' is another image already; remove it first or choose another name")
            caller.require_ownership(held.owner, f"the image name '{name}'")
        return replace_fields(held, manifest=origin.manifest) if caller.may_change(held.owner) else held

    def require_movable(self, name: Reference, caller: Caller) -> None:
        """Refuse early, before the content is known, what `bind` would refuse. Raises: Forbidden."""
        if (held := self.names.get(name)) is not None:
            caller.require_ownership(held.owner, f"the image name '{name}'")

    def put(self, name: Reference, base: Base, target: TagTarget) -> Image:
        if self.whole(base.digest) is None:
            self.replace_base(base)
        self.names[name] = target
        return self._image(name, self.disks[base.digest])

    def adopted(self, base: Base) -> Base:
        """The base as it is to be kept: one that heals a damaged one keeps the owner."""
        former = self.disks.get(base.digest)
        return base if former is None else replace_fields(base, owner=former.owner)

    def owners(self, digest: str) -> set[str]:
        """Whose a content is: of those whose names it has, or of whoever added it when it has none."""
        return {held.owner for held in self.names_of(digest).values()} or {self.disks[digest].owner}

    def plan_removal(self, ref: str, used_by: UsedBy, caller: Caller) -> Removal:
        """Decide what goes when `ref` goes. Raises: ImageNotFound, ImageInUse naming the VMs, Forbidden."""
        name, base = self.find(ref)
        all_names = self.names_of(base.digest)
        if name is not None and len(all_names) > 1 and not parse_reference(ref).is_digest:
            caller.require_ownership(self.names[name].owner, f"the image '{ref}'")
            return Removal(self._image(name, base), {name: self.names[name]}, None)
        for owner in self.owners(base.digest):
            caller.require_ownership(owner, f"the image '{ref}'")
        if users := used_by(base.digest):
            shown = ", ".join(users[:10]) + (", …" if len(users) > 10 else "")
            raise ImageInUse(f"'{ref}' is the disk under {shown}; delete these VMs first", vms=list(users))
        return Removal(self._image(name, base), all_names, base)

    def plan_prune(self, used_by: UsedBy, *, everything: bool, caller: Caller) -> list[Removal]:
        """Decide what goes: the caller's bases that no VM stands on, without `everything` only those without a name."""
        candidates = list(self.disks.values()) if everything else self._unnamed()
        removals = []
        for base in candidates:
            if not used_by(base.digest) and all(map(caller.may_change, self.owners(base.digest))):
                names = self.names_of(base.digest)
                removals.append(Removal(self._image(next(iter(names), None), base), names, base))
        return removals

    def drop(self, removal: Removal) -> None:
        for name in removal.names:
            self.names.pop(name, None)
        if removal.base is not None:
            self.disks.pop(removal.base.digest, None)

    def restore(self, removal: Removal) -> None:
        """Undo `drop`."""
        if removal.base is not None:
            self.disks[removal.base.digest] = removal.base
        self.names.update(removal.names)

    def _unnamed(self) -> list[Base]:
        held = {held.digest for held in self.names.values()}
        return [base for digest, base in self.disks.items() if digest not in held]

    def names_of(self, digest: str) -> dict[Reference, TagTarget]:
        return {name: held for name, held in self.names.items() if held.digest == digest}

    def _image(self, name: Reference | None, base: Base) -> Image:
        return Image(
            name=name.name if name else "",
            tag=name.tag if name else "",
            registry=name.registry if name else "local",
            digest=base.digest,
            manifest=self.names[name].manifest if name else "",
            owner=self.names[name].owner if name else base.owner,
            size=base.size,
            allocated=base.allocated,
            created_at=base.created_at,
            source=base.source,
            labels=dict(base.labels),
            damaged=base.damaged,
        )


def parse_new_name(ref: str) -> Reference:
    """The name for a new image. Raises: InvalidRequest for a digest: content is named by what it turns out to be."""
    name = parse_reference(ref)
    if name.digest:
        raise InvalidRequest(f"'{ref}' has a digest; give the image a name such as name:tag", path="image")
    return name


def _names(wanted: Reference, name: Reference) -> bool:
    return (wanted.registry, wanted.name) == (name.registry, name.name) and wanted.tag in {"", name.tag}
