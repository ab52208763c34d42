"""What is said at the head of a tunnel, before its bytes are the guest's: one frame each way. Bytes in, bytes out.

A frame is a length of two bytes, big-endian, and that much msgpack.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from .access import Delegate, Role
from .errors import ErrorBody, PeerMisbehaved
from .services import Port
from .tolerant import decode_tolerantly
from .vm import VmRef

PROTOCOL = "/twinshare/tunnel/1.0.0"
HEAD = struct.Struct(">H")
MAX_FRAME = 4096

Frame = TypeVar("Frame", bound=msgspec.Struct)


class TunnelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which port of which guest. A `probe` asks whether a tunnel would be allowed, and carries nothing.

    `principal` is whom the node asks for, `role` what that one has there: the owner allows no more.
    """

    vm: VmRef
    port: Port
    role: Role
    probe: bool = False
    principal: Delegate = ""


class TunnelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`error` says why there is no tunnel; else the bytes that follow are the guest's."""

    vm_id: str = ""
    vm_name: str = ""
    error: ErrorBody | None = None


def encode(frame: msgspec.Struct) -> bytes:
    """A frame with its length. Raises: ValueError for one that is too large."""
    body = msgspec.msgpack.encode(frame)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes is too large")
    return HEAD.pack(len(body)) + body


def length_of(head: bytes | memoryview) -> int:
    """How long the frame is that a head announces. Raises: PeerMisbehaved."""
    (length,) = HEAD.unpack(head)
    if length > MAX_FRAME:
        raise PeerMisbehaved(f"the peer announces a frame of {length} bytes on a stream")
    return int(length)


def decode(body: bytes, kind: type[Frame]) -> Frame:
    """Raises: PeerMisbehaved."""
    try:
        found: Frame = decode_tolerantly(body, kind)
        return found
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerMisbehaved(f"the peer's words on a stream are not understood: {error}") from None
