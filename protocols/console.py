"""What is said on a stream to the console of a peer's VM: one question, then frames both ways. Bytes in, bytes out.

Frames are written as at the head of a tunnel (`tunnel.encode`). The owner's first frame is empty, or says why there is
no console; its last one says why the console ended.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .access import Delegate, Role
from .errors import ErrorBody
from .tunnel import MAX_FRAME
from .vm import VmRef

PROTOCOL = "/twinshare/console/1.0.0"
SCREEN_PROTOCOL = "/twinshare/screen/1.0.0"
"""The same for the screen: its bytes are RFB (RFC 6143)."""
PIECE = MAX_FRAME - 96
"""Bytes of a console in one frame, at most."""

CLOSED_NORMALLY = 1000
CLOSED_BY_ERROR = 4000
"""How a websocket tells the end of a console: the VM has stopped; or this and the HTTP status of the error, whose code
word then stands before its sentence."""
MAX_REASON = 123
HEARTBEAT = 20.0
"""Seconds between two pings of the node."""
SILENCE = 65.0
"""Seconds after which each side takes the other, of which it has heard nothing, for gone: three pings."""


class ConsoleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Whose console. `principal` is whom the node asks for, `role` what that one has there, and no more is allowed."""

    vm: VmRef
    role: Role
    principal: Delegate = ""


class ConsoleFrame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the guest said, or what is typed. `error` ends the console."""

    data: bytes = b""
    error: ErrorBody | None = None


def pieces(data: bytes) -> Iterator[ConsoleFrame]:
    """The frames that carry `data`."""
    for start in range(0, len(data), PIECE):
        yield ConsoleFrame(data=data[start : start + PIECE])
