"""Which names stand for which bases: the rules that every image store keeps. No files and no clock are known here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ...protocols.errors import ImageExists, ImageInUse, ImageNotFound, InvalidRequest
from ...protocols.image import Image
from ...protocols.reference import Reference, parse_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One disk content. Sizes in bytes: `size` is what the guest sees, `allocated` what it takes here."""

    digest: str
    size: int
    allocated: int
    created_at: datetime
    source: str


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal takes away: `base` is None while other names keep it."""

    image: Image
    names: Sequence[Reference]
    base: Base | None


@dataclass(slots=True)
class Shelf:
    """Names in the order they were given. A base may be without a name: a name that moved on left it behind."""

    bases: dict[str, Base] = field(default_factory=dict)
    names: dict[Reference, str] = field(default_factory=dict)

    def images(self) -> list[Image]:
        """One row for each name, and one without name and tag for each base that has none."""
        named = [_image(name, self.bases[digest]) for name, digest in self.names.items()]
        held = set(self.names.values())
        return named + [_image(None, base) for digest, base in self.bases.items() if digest not in held]

    def find(self, ref: str) -> tuple[Reference | None, Base]:
        """Raises: ImageNotFound, InvalidRequest."""
        wanted = parse_reference(ref)
        for name, digest in self.names.items():
            if wanted.digest in {"", digest} and (wanted.is_digest or _names(wanted, name)):
                return name, self.bases[digest]
        if wanted.is_digest and wanted.digest in self.bases:
            return None, self.bases[wanted.digest]
        raise ImageNotFound(f"there is no image '{ref}' on this node; import, pull or build it first")

    def get(self, ref: str) -> Image:
        return _image(*self.find(ref))

    def check_free(self, name: Reference, digest: str, *, replace: bool) -> None:
        """Raises: ImageExists when the name stands for another content and may not be moved."""
        if not replace and self.names.get(name, digest) != digest:
            raise ImageExists(f"'{name}' is another image already; remove it first or choose another name")

    def put(self, name: Reference, base: Base) -> Image:
        self.bases.setdefault(base.digest, base)
        self.names[name] = base.digest
        return _image(name, self.bases[base.digest])

    def plan_removal(self, ref: str, used_by: Callable[[str], Sequence[str]]) -> Removal:
        """Decide what goes when `ref` goes. Raises: ImageNotFound, ImageInUse naming the VMs."""
        name, base = self.find(ref)
        all_names = [other for other, digest in self.names.items() if digest == base.digest]
        image = _image(name, base)
        if name is not None and len(all_names) > 1 and not parse_reference(ref).is_digest:
            return Removal(image, [name], None)
        if users := used_by(base.digest):
            shown = ", ".join(users[:10]) + (", …" if len(users) > 10 else "")
            raise ImageInUse(f"'{ref}' is the disk under {shown}; delete these VMs first", vms=list(users))
        return Removal(image, all_names, base)

    def drop(self, removal: Removal) -> None:
        for name in removal.names:
            self.names.pop(name, None)
        if removal.base is not None:
            self.bases.pop(removal.base.digest, None)

    def restore(self, removal: Removal) -> None:
        """Undo `drop`."""
        if removal.base is not None:
            self.bases[removal.base.digest] = removal.base
        for name in removal.names:
            self.names[name] = removal.image.digest


def parse_new_name(ref: str) -> Reference:
    """The name for a new image. Raises: InvalidRequest for a digest: content is named by what it turns out to be."""
    name = parse_reference(ref)
    if name.digest:
        raise InvalidRequest(f"'{ref}' has a digest; give the image a name such as name:tag", path="image")
    return name


def _names(wanted: Reference, name: Reference) -> bool:
    return (wanted.registry, wanted.name) == (name.registry, name.name) and wanted.tag in {"", name.tag}


def _image(name: Reference | None, base: Base) -> Image:
    return Image(
        name=name.name if name else "",
        tag=name.tag if name else "",
        registry=name.registry if name else "local",
        digest=base.digest,
        size=base.size,
        allocated=base.allocated,
        created_at=base.created_at,
        source=base.source,
    )
