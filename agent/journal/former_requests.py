"""Requests in the journal as the first version wrote them.

It kept forms of its own (a VM's spec alone, a forward alone…). Since then a row keeps the arguments of the method. The
old form is converted when it is read, so that an agent that goes back one version still reads its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_CONVERSIONS: Mapping[str, Callable[[Any, str], dict[str, Any]]] = {
    "create_vm": lambda old, target: {"spec": old},
    "add_forward": lambda old, target: {"vm": target, "forward": old},
    "remove_forward": lambda old, target: {"vm": target, "host_port": old},
    "pull_image": lambda old, target: {"request": old},
    "push_image": lambda old, target: {"request": old},
    "add_tunnel": lambda old, target: {"peer": old["peer"], "vm": old["vm"], "forward": old["spec"]},
    "remove_tunnel": lambda old, target: {"peer": old["peer"], "vm": old["vm"], "host_port": old["spec"]["host_port"]},
}


def convert_former_request(kind: str, target: str, request: bytes) -> bytes | None:
    """The arguments of the method, packed; None where the first version had no other form, or it is not that form."""
    conversion = _CONVERSIONS.get(kind)
    try:
        return msgspec.msgpack.encode(conversion(msgspec.msgpack.decode(request), target)) if conversion else None
    except (msgspec.MsgspecError, LookupError, TypeError):
        return None
