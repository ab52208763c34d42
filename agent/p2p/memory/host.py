"""The `Host` port on the network in memory."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
import trio

from ....protocols.errors import PeerUnreachable, Unsupported
from ...background import open_background
from ...channels import LossyChannel
from ..expected_sockets import ExpectedSocket, ExpectedSockets
from ..host import (
    DIAL_DEADLINE,
    MAX_EVENTS,
    Admission,
    Connection,
    Direction,
    Gate,
    Handler,
    PathKind,
    PeerEvent,
    PeerId,
    Stream,
)
from .connection import MemoryConnection
from .network import MemoryNetwork
from .stream import MemoryStream

log = structlog.get_logger(__name__)
PEER_TIMEOUT = 15.0
_PORT = 1
"""There are no ports here; a ticket is enough."""


class MemoryHost:
    """Made by `open_memory_host`."""

    def __init__(
        self,
        network: MemoryNetwork,
        peer_id: PeerId,
        gate: Gate,
        address: str,
        peer_timeout: float,
        nursery: trio.Nursery,
    ) -> None:
        self.network = network
        self._peer_id, self._gate, self._address = peer_id, gate, address
        self._peer_timeout = peer_timeout
        self._nursery = nursery
        self.expected = ExpectedSockets()
        self._handlers: dict[str, tuple[Handler, bool]] = {}
        self._open: list[MemoryConnection] = []
        self._events = LossyChannel[PeerEvent](MAX_EVENTS)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return [f"{self._address}/p2p/{self._peer_id}"]

    @property
    def connections(self) -> Sequence[Connection]:
        return [connection.view(self) for connection in self._open]

    @property
    def events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        return self._events.receive

    def path(self, peer_id: PeerId) -> PathKind | None:
        return PathKind.DIRECT if self._connection_to(peer_id) else None

    def serve(self, protocol: str, handler: Handler, *, guests: bool = False) -> None:
        self._handlers[protocol] = (handler, guests)

    async def connect(
        self, peer_id: PeerId, addresses: Sequence[str], *, deadline: float = DIAL_DEADLINE
    ) -> Connection:
        await trio.lowlevel.checkpoint()
        connection = self._connection_to(peer_id)
        if connection is None:
            with trio.move_on_after(deadline):
                connection = await self._dial(peer_id, addresses)
        if connection is None:
            raise PeerUnreachable(f"{peer_id} did not answer within {deadline:g} s", peer=peer_id)
        return connection.view(self)

    async def disconnect(self, peer_id: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        for connection in [connection for connection in self._open if connection.view(self).peer_id == peer_id]:
            connection.give_up(self)

    async def open_stream(self, peer_id: PeerId, protocol: str, *, deadline: float = DIAL_DEADLINE) -> Stream:
        await trio.lowlevel.checkpoint()
        connection = self._connected(peer_id)
        with trio.move_on_after(deadline):
            await self._travel(peer_id)
            await self._travel(peer_id)
            if not connection.held_by(self):
                raise PeerUnreachable(f"the connection with {peer_id} is lost", peer=peer_id)
            ours, theirs = connection.open_stream(self, protocol)
            if not connection.far(self).accept(theirs):
                ours.close()
                raise Unsupported(f"{peer_id} does not serve us {protocol}", peer=peer_id)
            return ours
        raise PeerUnreachable(f"{peer_id} did not open a stream within {deadline:g} s", peer=peer_id)

    @contextmanager
    def expect_socket(self, peer_id: PeerId, ticket: str) -> Iterator[ExpectedSocket]:
        self._connected(peer_id)
        with self.expected.expect(ticket, _PORT) as expected:
            yield expected

    async def dial_socket(
        self, peer_id: PeerId, ticket: str, port: int, *, deadline: float = DIAL_DEADLINE
    ) -> socket.socket:
        connection = self._connected(peer_id)
        with trio.move_on_after(deadline):
            await self._travel(peer_id)
            await self._travel(peer_id)
            if connection.held_by(self) and (expected := connection.far(self).expected.claim(ticket)) is not None:
                ours, theirs = socket.socketpair()
                expected.give(theirs)
                return ours
        raise PeerUnreachable(f"{peer_id} takes no second connection", peer=peer_id)

    async def ping(self, peer_id: PeerId, *, deadline: float = DIAL_DEADLINE) -> float:
        started = trio.current_time()
        connection = self._connection_to(peer_id)
        with trio.move_on_after(deadline):
            await self._travel(peer_id)
            await self._travel(peer_id)
            if connection is not None and connection.held_by(self):
                return trio.current_time() - started
        raise PeerUnreachable(f"{peer_id} did not answer a ping within {deadline:g} s", peer=peer_id)

    # -- what connections ask of a host

    def hold(self, connection: MemoryConnection) -> None:
        self._open.append(connection)
        if len(self._to(connection)) == 1:
            self._events.publish(PeerEvent(peer_id=connection.view(self).peer_id, path=PathKind.DIRECT))

    def release(self, connection: MemoryConnection) -> None:
        self._open.remove(connection)
        if not self._to(connection):
            self._events.publish(PeerEvent(peer_id=connection.view(self).peer_id, path=None))

    def watch_silence(self, connection: MemoryConnection) -> None:
        self._nursery.start_soon(self._give_up_when_dead, connection, connection.silent_since)

    def admit(self, peer_id: PeerId, direction: Direction) -> Admission:
        return self._gate(peer_id, direction)

    def accept(self, stream: MemoryStream) -> bool:
        """Start the handler of a stream that a peer opens, if the peer may have it."""
        handler, guests = self._handlers.get(stream.protocol, (None, False))
        admission = self._gate(stream.peer_id, Direction.INBOUND)
        if handler is None or admission is Admission.REFUSED or (admission is not Admission.MEMBER and not guests):
            stream.reset()
            return False
        self._nursery.start_soon(self._run, handler, stream, name=f"{stream.protocol} from {stream.peer_id}")
        return True

    # -- our own

    async def _dial(self, peer_id: PeerId, addresses: Sequence[str]) -> MemoryConnection:
        """Until somebody answers who is `peer_id` and lets us in."""
        if self._gate(peer_id, Direction.OUTBOUND) is Admission.REFUSED:
            raise PeerUnreachable(f"{peer_id} may not be connected to", peer=peer_id)
        plain = [address.partition("/p2p/")[0] for address in addresses]
        await self._travel(peer_id)
        await self._travel(peer_id)
        found = next((a for a in plain if (h := self.network.hosts.get(a)) and h.peer_id == peer_id), None)
        if found is None:
            raise PeerUnreachable(f"{peer_id} is at none of the {len(plain)} addresses we know", peer=peer_id)
        far = self.network.hosts[found]
        if far.admit(self._peer_id, Direction.INBOUND) is Admission.REFUSED:
            raise PeerUnreachable(f"{peer_id} refused the connection", peer=peer_id, refused=True)
        return self._connection_to(peer_id) or MemoryConnection(self, self._address, far, found)

    async def _travel(self, peer_id: PeerId) -> None:
        """The time that a byte takes to the peer; on a silent link, until it speaks again."""
        while (delay := self.network.delay_now(self._peer_id, peer_id)) is None:
            await self.network.changed.park()
        await trio.sleep(delay)

    async def _give_up_when_dead(self, connection: MemoryConnection, since: float | None) -> None:
        await trio.sleep(self._peer_timeout)
        if connection.silent_since == since and connection.held_by(self):
            connection.give_up(self)

    async def _run(self, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            stream.reset()
        except Exception:
            log.exception("a stream's handler failed", protocol=stream.protocol, peer=stream.peer_id)
            stream.reset()
        except BaseException:
            stream.reset()
            raise
        stream.close()

    def _connection_to(self, peer_id: PeerId) -> MemoryConnection | None:
        return next((connection for connection in self._open if connection.view(self).peer_id == peer_id), None)

    def _connected(self, peer_id: PeerId) -> MemoryConnection:
        """Return the connection with a peer. Raises: PeerUnreachable."""
        if (connection := self._connection_to(peer_id)) is None:
            raise PeerUnreachable(f"there is no connection with {peer_id}", peer=peer_id)
        return connection

    def _to(self, connection: MemoryConnection) -> list[MemoryConnection]:
        return [other for other in self._open if other.view(self).peer_id == connection.view(self).peer_id]

    def close(self) -> None:
        for connection in list(self._open):
            connection.give_up(self)
        self._events.close()


@asynccontextmanager
async def open_memory_host(
    network: MemoryNetwork, peer_id: PeerId, gate: Gate, *, peer_timeout: float = PEER_TIMEOUT
) -> AsyncIterator[MemoryHost]:
    """Put a host on the network, at a new address (`/memory/<number>`).

    `peer_timeout` is how many seconds a silent peer stays connected. Leaving ends it as a crash would: the peers see
    their connections break as soon as the sessions let them.
    """
    address = network.new_address()
    async with open_background() as nursery:
        host = MemoryHost(network, peer_id, gate, address, peer_timeout, nursery)
        network.hosts[address] = host
        try:
            yield host
        finally:
            del network.hosts[address]
            host.close()
