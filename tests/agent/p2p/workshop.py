"""A small service, and two nodes on a network in memory of which one calls it on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import trio

from twinshare.agent.p2p.calls import PeerCalls
from twinshare.agent.p2p.host import Admission, Direction, Host, PeerId
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.agent.p2p.peer_session import PROTOCOL, PeerSession, open_peer_session
from twinshare.agent.p2p.rpc import PeerServer
from twinshare.agent.simulation import MemoryEvents
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import PeerUnreachable, WrongState
from twinshare.protocols.messages import Hello, Request
from twinshare.protocols.method import Method
from twinshare.protocols.operation import Detached, Operation, OperationState, Progress
from twinshare.protocols.routes import rest
from twinshare.protocols.table import Dispatcher, methods

NOON = datetime(2025, 5, 10, 12, tzinfo=UTC)


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size: int = 0
    note: str = ""


class WorkshopService(Protocol):
    @rest("GET", "/echo", Role.VIEWER)
    async def echo(self, text: str) -> str: ...

    @rest("GET", "/slow", Role.VIEWER)
    async def slow(self, seconds: float) -> float: ...

    @rest("POST", "/piece", Role.OPERATOR)
    async def make(self, piece: Piece) -> Piece: ...

    @rest("DELETE", "/piece/<name>", Role.ADMIN)
    async def destroy(self, name: str) -> None: ...

    @rest("GET", "/fault", Role.VIEWER)
    async def fault(self) -> None: ...

    @rest("GET", "/large", Role.VIEWER)
    async def large(self, size: int) -> bytes: ...

    @rest("GET", "/piece", Role.VIEWER)
    async def pieces(self, count: int, size: int) -> list[Piece]: ...

    @rest("GET", "/secret", Role.VIEWER, local=True)
    async def secret(self) -> str: ...


TABLE = methods(WorkshopService)


class Workshop:
    """What is served; remembers what was done to it, and by whom."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.made: list[Piece] = []
        self.cancelled = 0
        self.busy = 0

    def bind(self, caller: Caller) -> _Bound:
        self.callers.append(caller)
        return _Bound(self, caller)


class _Bound:
    def __init__(self, shop: Workshop, caller: Caller) -> None:
        self._shop, self._caller = shop, caller

    async def echo(self, text: str) -> str:
        return text

    async def slow(self, seconds: float) -> float:
        self._shop.busy += 1
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self._shop.cancelled += 1
            raise
        finally:
            self._shop.busy -= 1
        return seconds

    async def make(self, piece: Piece) -> Piece:
        if self._caller.detach:
            raise Detached(operation(piece.name))
        self._shop.made.append(piece)
        return piece

    async def destroy(self, name: str) -> None:
        raise WrongState(f"{name} is in use", name=name)

    async def fault(self) -> None:
        raise ZeroDivisionError("a bug in the workshop")

    async def large(self, size: int) -> bytes:
        return bytes(size)

    async def pieces(self, count: int, size: int) -> list[Piece]:
        return [Piece(name=f"cog-{number}", note="x" * size) for number in range(count)]

    async def secret(self) -> str:
        return "the plan"


def operation(target: str) -> Operation:
    return Operation(
        id="op-1",
        kind="make",
        target=target,
        node="b",
        state=OperationState.RUNNING,
        progress=Progress(),
        created_at=NOON,
        updated_at=NOON,
        idempotency_key="k",
    )


class Neighbourhood:
    """Everybody may come in, with the role that `roles` gives them."""

    def __init__(self) -> None:
        self.roles: dict[PeerId, Role] = {}
        self.heard: list[tuple[PeerId, Hello]] = []

    def hello(self) -> Hello:
        return Hello(name="b", agent="test")

    def caller(self, peer_id: PeerId, method: str, request: Request) -> Caller:
        role = self.roles.get(peer_id, Role.ADMIN)
        lower = role if request.role.includes(role) else request.role
        return Caller(principal=peer_id, role=lower, idempotency_key=request.key, detach=request.detach)

    def greeted(self, peer_id: PeerId, hello: Hello) -> None:
        self.heard.append((peer_id, hello))


class Pair:
    """Node `a`, which calls, and node `b`, which has the workshop."""

    def __init__(self, network: MemoryNetwork, a: Host, b: Host) -> None:
        self.network, self.a, self.b = network, a, b
        self.shop, self.neighbours, self.events = Workshop(), Neighbourhood(), MemoryEvents()
        self.server = PeerServer(
            Dispatcher({WorkshopService: self.shop.bind}), self.neighbours, self.events.subscribe, peer_timeout=15
        )
        self.session: PeerSession | None = None
        self.calls = PeerCalls(self.session_to)
        b.serve(PROTOCOL, self.server.serve)

    async def session_to(self, peer: PeerId) -> PeerSession:
        if self.session is None or self.session.over.is_set():
            raise PeerUnreachable(f"no session to {peer}")
        return self.session

    async def call(
        self, operation: str, caller: Caller | None = None, timeout: float | None = None, **arguments: Any
    ) -> Any:
        method: Method = TABLE[operation]
        return await self.calls.call("b", method, arguments, caller or ADMIN, timeout=timeout)


ADMIN = Caller(principal="local", role=Role.ADMIN)


def admit_all(_peer: PeerId, _direction: Direction) -> Admission:
    return Admission.MEMBER


@asynccontextmanager
async def open_pair(peer_timeout: float = 15, network: MemoryNetwork | None = None) -> AsyncIterator[Pair]:
    network = network or MemoryNetwork()
    async with (
        open_memory_host(network, "a", admit_all, peer_timeout=1000) as a,
        open_memory_host(network, "b", admit_all, peer_timeout=1000) as b,
    ):
        pair = Pair(network, a, b)
        await a.connect("b", b.addresses)
        async with open_peer_session(a, "b", Hello(name="a"), peer_timeout) as pair.session:
            yield pair
