"""Events of kinds that the product does not have, for tests of what carries events."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from twinshare.protocols.events import EventPayload


def probe(type: str, **data: Any) -> EventPayload:
    """The payload of an event of any `type` with any `data`."""
    fields = [(name, Any) for name in data]
    kind = msgspec.defstruct("Probe", fields, bases=(EventPayload,), namespace={"event": type}, frozen=True)
    return cast("EventPayload", kind(**data))
