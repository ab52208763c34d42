"""What the agent asks of a peer-to-peer host. `memory` and `libp2p` implement it; `contract` holds both to it.

A host proves peer IDs and carries bytes; it knows nothing of fleets, roles or calls. Who is connected is
reported twice: `events` has each change, `connections` the present state.
Raises, where nothing else is said: `PeerUnreachable` when the peer cannot be reached within the deadline, or the
connection ends before the call is done.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

import trio

from .expected_sockets import ExpectedSocket

PeerId: TypeAlias = str
DIAL_DEADLINE = 5.0
"""Seconds that `connect` and `open_stream` take at most."""
MAX_EVENTS = 1024


class Admission(StrEnum):
    """What a proven peer may do here. `GUEST`: open the protocols that are served with `guests=True`, nothing else.

    `JOINING`: a guest that has named a ticket which is valid here; it keeps its place when many strangers come.
    """

    REFUSED = "refused"
    GUEST = "guest"
    JOINING = "joining"
    MEMBER = "member"


class Direction(StrEnum):
    """Who dialled."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class PathKind(StrEnum):
    """Whether the bytes travel straight to the peer or through a relay."""

    DIRECT = "direct"
    RELAYED = "relayed"


Gate: TypeAlias = Callable[[PeerId, Direction], Admission]
"""Asked when the handshake has proved the peer ID, and again at each stream that the peer opens: what it answers holds
at once. It must be quick and must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One live connection. `address` is the far end as a multiaddr; `since` is on trio's clock."""

    peer_id: PeerId
    address: str
    direction: Direction
    path: PathKind
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEvent:
    """A peer's first connection came up, its last one went down, or its best path changed (`path` None: it is gone).

    With the host's own ID: its `addresses` are others than before.
    """

    peer_id: PeerId
    path: PathKind | None

    @property
    def connected(self) -> bool:
        """Whether the peer is there after this."""
        return self.path is not None


class Stream(trio.abc.HalfCloseableStream):
    """A byte stream to a proven peer. It follows trio's stream contract; `aclose` never waits for the far side."""

    @property
    @abstractmethod
    def peer_id(self) -> PeerId: ...

    @property
    @abstractmethod
    def protocol(self) -> str: ...

    @abstractmethod
    def reset(self) -> None:
        """End both directions at once; the far side gets `BrokenResourceError`. No error if it is over already."""


Handler: TypeAlias = Callable[[Stream], Awaitable[None]]


class Host(Protocol):
    """One identity on the network, made by `open_memory_host` or `open_libp2p_host`; leaving them ends all of it."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> Sequence[str]:
        """Where others can dial us: multiaddrs that end in `/p2p/<peer_id>`, unspecified ones expanded. May change."""
        ...

    @property
    def connections(self) -> Sequence[Connection]:
        """All live ones; a peer may have several."""
        ...

    @property
    def events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        """One channel of `MAX_EVENTS`; when it is full the oldest give way, so look at `connections` for the truth."""
        ...

    def path(self, peer_id: PeerId) -> PathKind | None:
        """The best path of the peer's live connections; None when there is none."""
        ...

    def serve(self, protocol: str, handler: Handler, *, guests: bool = False) -> None:
        """Run `handler` in a task of its own for each stream that a peer opens with `protocol`.

        The stream is closed when the handler returns, reset when it raises or is cancelled. What a handler raises is
        logged and goes no further.
        """
        ...

    async def connect(
        self, peer_id: PeerId, addresses: Sequence[str], *, deadline: float = DIAL_DEADLINE
    ) -> Connection:
        """Dial all addresses at once; the first that proves `peer_id` wins. A live connection is returned as it is.

        `deadline` is in seconds. Addresses are hints: one that is no multiaddr counts as one that did not answer.
        The error's `details["refused"]` is true when the peer itself was reached, and hung up on us.
        """
        ...

    async def disconnect(self, peer_id: PeerId) -> None:
        """End all connections with the peer and every stream on them; no error if there is none."""
        ...

    async def open_stream(self, peer_id: PeerId, protocol: str, *, deadline: float = DIAL_DEADLINE) -> Stream:
        """Open a stream on a live connection; it never dials. `deadline` is in seconds.

        Raises: PeerUnreachable, also when there is no connection; Unsupported when the peer does not serve us
        `protocol`.
        """
        ...

    def expect_socket(self, peer_id: PeerId, ticket: str) -> AbstractContextManager[ExpectedSocket]:
        """Take one TCP connection from whoever names `ticket`, a secret of both ends, in this block."""
        ...

    async def dial_socket(
        self, peer_id: PeerId, ticket: str, port: int, *, deadline: float = DIAL_DEADLINE
    ) -> socket.socket:
        """Open the connection that a directly connected peer expects at its `port`: a blocking socket of the caller's.

        Nothing proves who is at its far end, and nothing is encrypted.
        """
        ...

    async def ping(self, peer_id: PeerId, *, deadline: float = DIAL_DEADLINE) -> float:
        """The round trip to a connected peer, in seconds."""
        ...
