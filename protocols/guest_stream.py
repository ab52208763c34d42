"""Streams into a guest: a session's output and stdin, the content of a file, a connection. Bytes in and out.

On the mesh the first message is `GuestStreamRequest`, answered by `Opened` or `Failed`; then each side sends what
happens on its side. A message is a length of four bytes, big-endian, and that much msgpack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum
from types import UnionType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .access import Delegate, Role
from .errors import ErrorBody, PeerMisbehaved
from .guest import FileEntry, GuestSession, Modified, Offset, SessionId, SignalName, Size, UserName, WriterId
from .tolerant import decode_tolerantly
from .vm import VmRef

PROTOCOL = "/twinshare/guest/1.0.0"
PIECE = 32 << 10
"""Bytes of content in one message, at most."""
MAX_MESSAGE = PIECE + 1024
HEAD = struct.Struct(">I")


class AttachSession(msgspec.Struct, frozen=True, kw_only=True, tag="attach", omit_defaults=True):
    """Read a session's output from `offset` on, by default from the first byte that is kept, and write its stdin.

    A client that attaches again names itself by the `writer` of its first `Opened`: only its own input is taken for
    what it sends again.
    """

    session: SessionId
    offset: Offset | None = None
    writer: WriterId = ""


class ReadFile(msgspec.Struct, frozen=True, kw_only=True, tag="read", omit_defaults=True):
    """Read a file, from `offset` on, `length` bytes of it or all."""

    path: Annotated[bytes, Meta(min_length=1, max_length=4096)]
    offset: Offset = 0
    length: Offset | None = None


class WriteFile(msgspec.Struct, frozen=True, kw_only=True, tag="write", omit_defaults=True):
    """Write a file: it takes the place of `path` when all of it is there, and is synced by then.

    `modified` in seconds since 1970. A write with an `upload` of the caller's choice (hex) can be cut off and goes on
    where it was when the same one is asked for again: `Opened.input_offset` says where.
    """

    path: Annotated[bytes, Meta(min_length=1, max_length=4096)]
    size: Offset | None = None
    mode: Annotated[int, Meta(ge=0, le=0o7777)] | None = None
    modified: Modified | None = None
    user: UserName = ""
    upload: Annotated[str, Meta(pattern="^([0-9a-f]{16,64})?$")] = ""


class DialPort(msgspec.Struct, frozen=True, kw_only=True, tag="dial"):
    """Connect to a TCP port on the guest's own loopback."""

    port: Annotated[int, Meta(ge=1, le=65535)]


class DialSsh(msgspec.Struct, frozen=True, kw_only=True, tag="ssh"):
    """Connect to an SSH server that is started in the guest for this connection; it needs no network."""


StreamRequest = AttachSession | ReadFile | WriteFile | DialPort | DialSsh


class GuestStreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The first message of a stream to the owner of a VM: what to open, for whom.

    `principal` is whom the node asks for, `role` what that one has there: the owner allows no more.
    """

    vm: VmRef
    role: Role
    open: StreamRequest
    principal: Delegate = ""


class Channel(StrEnum):
    """Where output comes from. Files and connections have `stdout` alone."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened", omit_defaults=True):
    """The stream is open. Output begins at `offset`; the guest has the input before `input_offset`.

    `input_end` is where the input of a session goes on for a client that has sent none: what lies between the two was
    accepted from another one, or from this one before it was cut off. `writer` is for a client that attaches again.
    """

    offset: int = 0
    input_offset: int = 0
    input_end: int | None = None
    writer: WriterId = ""
    session: GuestSession | None = None
    file: FileEntry | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True, tag="output"):
    """Bytes from the guest; `offset` is the one of the first."""

    offset: int
    data: bytes
    channel: Channel = Channel.STDOUT


class InputTaken(msgspec.Struct, frozen=True, kw_only=True, tag="input_taken"):
    """The guest has the input of a session before `offset`: whoever sent it need not keep it any longer."""

    offset: int


class OutputEnd(msgspec.Struct, frozen=True, kw_only=True, tag="output_end"):
    """The guest has closed its side of a connection; the other side may still be written to."""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished", omit_defaults=True):
    """The stream is at its end: the command has ended, the file is read or written.

    `digest` is the BLAKE2b (32 bytes, hex) of what was transferred: the guest has computed it, or verified a CRC-32.
    """

    exit_code: int | None = None
    signal: str | None = None
    file: FileEntry | None = None
    digest: str | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The stream ends with an error."""

    error: ErrorBody


class Input(msgspec.Struct, frozen=True, kw_only=True, tag="input"):
    """Bytes for the guest. With an `offset` before what is accepted already, only the rest is taken."""

    data: bytes
    offset: int | None = None


class InputEnd(msgspec.Struct, frozen=True, kw_only=True, tag="input_end"):
    """No more input: stdin is closed, the file is whole, the connection is half closed."""


class Resize(msgspec.Struct, frozen=True, kw_only=True, tag="resize"):
    """The window of a terminal session has another size."""

    columns: Size
    rows: Size


class SendSignal(msgspec.Struct, frozen=True, kw_only=True, tag="signal"):
    """Send a signal to all processes of a session."""

    signal: SignalName


FromGuest = Output | InputTaken | OutputEnd | Finished
ToGuest = Input | InputEnd | Resize | SendSignal
OwnerMessage = Opened | Output | InputTaken | OutputEnd | Finished | Failed


def encode_message(message: msgspec.Struct) -> bytes:
    """A message with its length. Raises: ValueError for one that is too large."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(body)} bytes is too large")
    return HEAD.pack(len(body)) + body


def message_length(head: bytes) -> int:
    """The length that a head announces. Raises: PeerMisbehaved."""
    (length,) = HEAD.unpack(head)
    if length > MAX_MESSAGE:
        raise PeerMisbehaved(f"the peer announces a message of {length} bytes on a guest stream")
    return int(length)


def decode_request(body: bytes) -> GuestStreamRequest:
    """Raises: PeerMisbehaved."""
    found: GuestStreamRequest = _decode(body, GuestStreamRequest)
    return found


def decode_to_guest(body: bytes) -> ToGuest:
    """Raises: PeerMisbehaved."""
    found: ToGuest = _decode(body, ToGuest)
    return found


def decode_from_owner(body: bytes) -> OwnerMessage:
    """Raises: PeerMisbehaved."""
    found: OwnerMessage = _decode(body, OwnerMessage)
    return found


def pieces(data: bytes) -> Iterator[bytes]:
    """The parts of `data` that one message can carry."""
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def _decode(body: bytes, kind: type | UnionType) -> Any:
    try:
        return decode_tolerantly(body, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerMisbehaved(f"the peer's message on a guest stream is not understood: {error}") from None
