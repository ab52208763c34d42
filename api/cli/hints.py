"""Did you mean: the nearest name that there is, for one that there is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...protocols.errors import ImageNotFound, NotFound, PeerNotFound, TwinshareError, VmNotFound

# For each kind of thing: the argument that named it, and the list that it should stand in.
_SOURCES: dict[type[NotFound], tuple[str, str]] = {
    VmNotFound: ("vm", "list_vms"),
    ImageNotFound: ("image", "list_images"),
    PeerNotFound: ("peer", "list_peers"),
}


def with_hint(call: Callable[..., Any], error: NotFound, arguments: Mapping[str, Any], peer: str | None) -> NotFound:
    """The same error with a suggestion, where something has nearly the name that was asked for."""
    argument, listing = _SOURCES.get(type(error), ("", ""))
    asked = peer if argument == "peer" and peer is not None else arguments.get(argument)
    spec = arguments.get("spec")
    if argument == "image" and spec is not None:
        asked = spec.image
    if not isinstance(asked, str):
        return error
    try:
        names = [found.name for found in call(listing, {}, None if argument == "peer" else peer)]
    except TwinshareError:
        return error
    from difflib import get_close_matches

    near = [f"'{name}'" for name in get_close_matches(asked, names) if name != asked]
    if not near:
        return error
    hinted = type(error)(f"{error.message}; did you mean {' or '.join(near)}?")
    hinted.details = error.details
    return hinted
