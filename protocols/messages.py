"""What the frames of a session carry, and what a session tells its shell.

The bodies are typed: `decode` is the one way in, and whatever does not fit is the peer's misbehaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from .access import Delegate, Role
from .errors import ErrorBody, PeerMisbehaved, TwinshareError
from .frames import MAX_CONTROL_BODY
from .operation import Operation
from .tolerant import decode_tolerantly, msgpack_decoder

VERSIONS = (1,)
"""The versions of the peer protocol that we speak, best last."""

Kept = TypeVar("Kept")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What each end says first. The caller lists the versions it speaks, the owner answers with the one they share.

    `addresses` are where the sender can be dialled, `number` grows with every change of them. `clock` is the sender's
    time in seconds of the epoch. `instance` is another one with every start of the sender. A session keeps its peer's.
    """

    versions: Annotated[tuple[int, ...], Meta(max_length=64)] = VERSIONS
    name: Annotated[str, Meta(max_length=256)] = ""
    agent: Annotated[str, Meta(max_length=256)] = ""
    addresses: Annotated[list[Annotated[str, Meta(max_length=1024)]], Meta(max_length=64)] = []
    number: int = 0
    clock: int = 0
    instance: Annotated[str, Meta(max_length=64)] = ""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error on the wire; `status` finds a class where the code is too new for the reader."""

    error: str
    code: str
    status: int = 500
    details: dict[str, Any] | None = None


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A call's body: the header, then the arguments as `Method.pack` writes them. `timeout` is in seconds from now.

    `role` is what the caller has on its own node: the owner allows no more than that. `credit` above 0 asks for a
    stream of items. `principal` is whom the node asks for, `traceparent` for which trace. Later versions append fields.
    """

    timeout: float
    role: Role
    key: str | None
    detach: bool
    credit: int
    arguments: msgspec.Raw
    principal: Delegate = ""
    traceparent: str = ""


class Follow(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `FOLLOW_EVENTS`: events after the number `after`, of these types (`vm.` takes all of a kind)."""

    after: int | None = None
    types: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] = []


FOLLOW_EVENTS = "follow_events"
"""The method whose answer is a stream of the owner's events, each an item."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """The peer said hello; from now on there may be calls."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Called:
    """A call arrived; it must be answered by `result`, `fail` or `detach` exactly once."""

    id: int
    method: str
    request: Request


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller does not wait any more; the call still needs its answer."""

    id: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The reader of a stream allows more items."""

    id: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A call of ours is done; `body` is its packed result."""

    id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A call of ours was refused or failed."""

    id: int
    error: TwinshareError


@dataclass(frozen=True, slots=True)
class DetachedAs:
    """The call goes on as an operation of the owner."""

    id: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class Received:
    """One item of a stream."""

    id: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over: send what `data_to_send` still holds, then close the stream."""

    error: TwinshareError


Event = Greeted | Called | Cancelled | Granted | Answered | Failed | DetachedAs | Received | Closed


def pack_error(error: TwinshareError) -> bytes:
    """An error as a frame's body; details that do not fit a control frame are dropped."""
    wire = error.to_wire()
    failure = Failure(error=wire.error, code=wire.code, status=error.status, details=wire.details)
    body = msgspec.msgpack.encode(failure, enc_hook=str)
    if len(body) <= MAX_CONTROL_BODY:
        return body
    return msgspec.msgpack.encode(Failure(error=wire.error[:1024], code=wire.code, status=error.status))


def unpack_error(body: bytes) -> TwinshareError:
    """Raises: PeerMisbehaved."""
    failure = decode(body, Failure)
    wire = ErrorBody(error=failure.error, code=failure.code, details=failure.details)
    return TwinshareError.from_wire(wire, failure.status)


def decode_request(body: bytes) -> Request:
    """Decode a call's header. Its arguments stay packed: their bounds are the method's. Raises: PeerMisbehaved."""
    try:
        found: Request = msgpack_decoder(Request).decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return decode(body, Request)
    return found


def decode(body: bytes, kind: type[Kept]) -> Kept:
    """Raises: PeerMisbehaved when `body` is no `kind`."""
    try:
        found: Kept = decode_tolerantly(body, kind)
        return found
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerMisbehaved(f"the peer sent what is no {kind.__name__}: {error}") from None
