"""Which image of this node a bare name means: Meda's clients call `registry/org/my-image:v1.0` by `my-image`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ...agent.node import Node
from ...protocols.access import Caller
from ...protocols.errors import AmbiguousName
from ...protocols.image import Image
from ...protocols.reference import DEFAULT_TAG, LOCAL, Reference, parse_reference
from .table import TABLE


async def local_image(node: Node, caller: Caller, name: str, default_tag: str = DEFAULT_TAG) -> str:
    """Return the full name of the image that `name` means, or `name` where no image of this node is meant.

    A request that is repeated under its idempotency key means the image that it meant before, which may be gone.
    Raises: InvalidRequest; AmbiguousName listing the images.
    """
    wanted = parse_reference(name)
    if wanted.registry != LOCAL or wanted.digest or "/" in wanted.name:
        return name
    has_tag = ":" in name
    before = _image_of(await node.operations.former_request(caller))
    if before is not None and (before == name or _matches(wanted, parse_reference(before), has_tag)):
        return before
    images: list[Image] = await node.call(caller, TABLE["list_images"], {})
    found = _meant(wanted, [one for one in _references(images) if _matches(wanted, one, has_tag)], default_tag)
    if len(found) > 1:
        names = sorted(map(str, found))
        raise AmbiguousName(f"'{name}' may be any of {', '.join(names)}; give the whole name", candidates=names)
    return str(found[0]) if found else name


def _references(images: Iterable[Image]) -> Iterator[Reference]:
    return (Reference(registry=one.registry, name=one.name, tag=one.tag) for one in images if one.name)


def _matches(wanted: Reference, image: Reference, has_tag: bool) -> bool:
    return image.name.rpartition("/")[2] == wanted.name and (not has_tag or image.tag == wanted.tag)


def _meant(wanted: Reference, candidates: list[Reference], default_tag: str) -> list[Reference]:
    """The image of exactly that name, else those of the name with another tag, else those whose names end in it.

    Of several the one with the tag is meant.
    """
    if wanted in candidates:
        return [wanted]
    local = [one for one in candidates if (one.registry, one.name) == (LOCAL, wanted.name)]
    found = local or candidates
    return found if len(found) == 1 else [one for one in found if one.tag == default_tag] or found


def _image_of(request: Any) -> str | None:
    """The image that a removal, a push or a creation of a VM was about."""
    for name in ("request", "spec"):
        request = getattr(request, name, request)
    image = getattr(request, "image", None)
    return image if isinstance(image, str) else None
