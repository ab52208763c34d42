"""One connection of the network in memory: two ends, of which each knows only what has reached it."""

from __future__ import annotations

from typing import Protocol

import trio

from ..expected_sockets import ExpectedSockets
from ..host import Admission, Connection, Direction, PathKind, PeerId
from .stream import MemoryStream, Pipe


class Network(Protocol):
    """The network of a connection."""

    connections: list[MemoryConnection]

    def passes(self, one: PeerId, other: PeerId) -> bool: ...

    def delay_now(self, source: PeerId, target: PeerId) -> float | None: ...


class Endpoint(Protocol):
    """The host at one end of a connection."""

    @property
    def network(self) -> Network: ...

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def expected(self) -> ExpectedSockets: ...

    def hold(self, connection: MemoryConnection) -> None: ...

    def release(self, connection: MemoryConnection) -> None: ...

    def watch_silence(self, connection: MemoryConnection) -> None: ...

    def admit(self, peer_id: PeerId, direction: Direction) -> Admission: ...

    def accept(self, stream: MemoryStream) -> bool: ...


class MemoryConnection:
    """`dialer` and `listener` hold it until they give it up; once one has, the other learns it as soon as it can."""

    def __init__(self, dialer: Endpoint, dialled_from: str, listener: Endpoint, address: str) -> None:
        self._network = dialer.network
        self._ends = (dialer, listener)
        self._streams: dict[Endpoint, list[MemoryStream]] = {dialer: [], listener: []}
        self._held_by = set(self._ends)
        now = trio.current_time()
        self._views = {
            dialer: Connection(
                peer_id=listener.peer_id, address=address, direction=Direction.OUTBOUND, path=PathKind.DIRECT, since=now
            ),
            listener: Connection(
                peer_id=dialer.peer_id,
                address=dialled_from,
                direction=Direction.INBOUND,
                path=PathKind.DIRECT,
                since=now,
            ),
        }
        self._silent_since: float | None = None
        self._network.connections.append(self)
        for host in self._ends:
            host.hold(self)
        self.look_again()

    @property
    def silent_since(self) -> float | None:
        """When its link fell silent; None while it speaks."""
        return self._silent_since

    def joins(self, one: str, other: str) -> bool:
        return {host.peer_id for host in self._ends} == {one, other}

    def view(self, host: Endpoint) -> Connection:
        return self._views[host]

    def far(self, host: Endpoint) -> Endpoint:
        return self._ends[1] if host is self._ends[0] else self._ends[0]

    def held_by(self, host: Endpoint) -> bool:
        return host in self._held_by

    def streams(self, host: Endpoint) -> int:
        """How many streams this end has open."""
        return sum(not stream.over for stream in self._streams[host])

    def open_stream(self, opener: Endpoint, protocol: str) -> tuple[MemoryStream, MemoryStream]:
        far = self.far(opener)
        there = Pipe(lambda: self._network.delay_now(opener.peer_id, far.peer_id))
        back = Pipe(lambda: self._network.delay_now(far.peer_id, opener.peer_id))
        ours = MemoryStream(far.peer_id, protocol, incoming=back, outgoing=there)
        theirs = MemoryStream(opener.peer_id, protocol, incoming=there, outgoing=back)
        for host, stream in ((opener, ours), (far, theirs)):
            self._streams[host] = [old for old in self._streams[host] if not old.over]
            self._streams[host].append(stream)
        return ours, theirs

    def break_off(self) -> None:
        """Both ends lose it now."""
        for host in self._ends:
            self.give_up(host)

    def give_up(self, host: Endpoint) -> None:
        """This end is over: its streams are lost, and the far end learns it when the link lets it."""
        if host not in self._held_by:
            return
        self._held_by.discard(host)
        for stream in self._streams[host]:
            stream.lose()
        host.release(self)
        if not self._held_by:
            self._network.connections.remove(self)
        self.look_again()

    def look_again(self) -> None:
        """The link or an end has changed."""
        passes = self._network.passes(*(host.peer_id for host in self._ends))
        if passes:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = trio.current_time()
            for host in tuple(self._held_by):
                host.watch_silence(self)
        for streams in self._streams.values():
            for stream in streams:
                stream.wake()
        if passes and len(self._held_by) == 1:
            self.give_up(*self._held_by)
