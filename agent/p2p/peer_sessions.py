"""A control session to every member: dialled, kept, and dialled again when it breaks. A peer with one is online."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from ...protocols.errors import PeerUnreachable, TwinshareError
from ...protocols.messages import Hello
from ..backoff import Backoff
from .context import MeshContext
from .discovery import Discovery
from .host import DIAL_DEADLINE, Direction, Host, PathKind, PeerId
from .peer_session import PeerSession, open_peer_session

log = structlog.get_logger(__name__)
FIRST_DELAY = 0.25
LONGEST_DELAY = 15.0
RECENT_DELAY = 6.0
"""The longest delay for a peer that was seen within `RECENT`: it is reached within 10 s after a cut, with jitter."""
RECENT = 3600.0
STEADY = 5.0
"""Seconds after which a session counts as a success, so that its end is retried without delay."""
LOOKUP_AFTER = 2
"""Failed dials after which discovery is asked for other addresses."""
IDLE_CHECK_INTERVAL = 0.1

Use = Callable[[PeerSession], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Target:
    """A peer that a session is kept to. `error` is why the last attempt failed; `retry` asks for the next one now.

    `worked_for`: seconds for which the last attempt's session was open.
    """

    backoff: Backoff
    worked_for: float = 0.0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    error: TwinshareError | None = None
    retry: bool = False
    wake: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class PeerSessions:
    """Keep a session to each member, in `nursery`. `discovery` looks up peers whose addresses do not answer."""

    def __init__(
        self,
        host: Host,
        context: MeshContext,
        discovery: Sequence[Discovery],
        hello: Callable[[], Hello],
        nursery: trio.Nursery,
    ) -> None:
        self._host, self._context, self._discovery = host, context, discovery
        self._hello, self._nursery = hello, nursery
        self._targets: dict[PeerId, _Target] = {}
        self._by_peer: dict[PeerId, PeerSession] = {}
        self._relayed: set[PeerSession] = set()
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def live(self) -> list[PeerSession]:
        """Return the open sessions."""
        return list(self._by_peer.values())

    def online(self, peer: PeerId) -> bool:
        """Return whether there is a session with the peer."""
        return peer in self._by_peer

    def keep(self, peers: Iterable[PeerId], use: Use) -> None:
        """Keep a session to each of these peers, and to no other. `use` runs with each new session while it lives."""
        wanted = set(peers)
        for peer in wanted - self._targets.keys():
            backoff = Backoff(FIRST_DELAY, LONGEST_DELAY, steady=STEADY, rng=self._context.rng)
            self._targets[peer] = target = _Target(backoff)
            self._nursery.start_soon(self._keep, peer, target, use, name=f"session to {peer}")
        for peer in self._targets.keys() - wanted:
            self._targets.pop(peer).scope.cancel()

    def retry_now(self, peer: PeerId) -> None:
        """Dial the peer without waiting for the backoff: something about it has changed."""
        if target := self._targets.get(peer):
            target.retry = True
            target.wake.unpark_all()

    def hint(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Take addresses of unknown worth; dial at once if the peer is a member and they are new."""
        if self._context.membership.known(peer) and self._context.address_book.hint(peer, addresses):
            self.retry_now(peer)

    def replace_relayed(self, peer: PeerId) -> None:
        """The peer can be reached directly: end a session through a relay once it has no call in flight."""
        session = self._by_peer.get(peer)
        if session in self._relayed:
            self._relayed.discard(session)
            self._nursery.start_soon(_end_when_idle, session)

    async def session_to(self, peer: PeerId) -> PeerSession:
        """Return the session, dialling for at most `DIAL_DEADLINE`. Raises: PeerUnreachable."""
        if session := self._usable(peer):
            return session
        self.retry_now(peer)
        error = None
        with trio.move_on_after(DIAL_DEADLINE):
            while target := self._targets.get(peer):
                if session := self._usable(peer):
                    return session
                error = target.error
                await self._changed.park()
                if target.error not in {error, None}:
                    error = target.error
                    break
        why = f": {error.message}" if error else ""
        raise PeerUnreachable(f"{self._context.title(peer)} cannot be reached{why}", peer=peer)

    def _usable(self, peer: PeerId) -> PeerSession | None:
        session = self._by_peer.get(peer)
        return session if session and session.error is None else None

    async def wait_until_tried(self, timeout: float) -> None:
        """Wait until every wanted peer was reached or a dial failed, at most `timeout` seconds."""
        with trio.move_on_after(timeout):
            while any(target.error is None and not self.online(peer) for peer, target in self._targets.items()):
                await self._changed.park()

    def absent(self, within: float) -> list[PeerId]:
        """Return the wanted peers without a session that were seen in the last `within` seconds."""
        now, last_seen = self._context.now(), self._context.address_book.last_seen
        away = [peer for peer in self._targets if not self.online(peer)]
        return [peer for peer in away if (seen := last_seen(peer)) is not None and now - seen < within]

    async def wait_for_any(self, peers: Sequence[PeerId]) -> None:
        """Wait until there is a session with one of the peers."""
        while not any(self.online(peer) for peer in peers):
            await self._changed.park()

    async def _keep(self, peer: PeerId, target: _Target, use: Use) -> None:
        with target.scope:
            while True:
                target.worked_for = 0.0
                try:
                    await self._connect(peer, target, use)
                except TwinshareError as error:
                    log.debug("no session", peer=peer, reason=error.message)
                    target.error = error
                    self._changed.unpark_all()
                    if target.backoff.failures >= LOOKUP_AFTER:
                        await self._look_up(peer)
                delay = target.backoff.next(target.worked_for, longest=self._longest_delay(peer))
                with trio.move_on_after(delay):
                    if not target.retry:
                        await target.wake.park()
                target.retry = False

    def _longest_delay(self, peer: PeerId) -> float:
        seen = self._context.address_book.last_seen(peer)
        return RECENT_DELAY if seen is not None and self._context.now() - seen < RECENT else LONGEST_DELAY

    async def _look_up(self, peer: PeerId) -> None:
        for source in self._discovery:
            self.hint(peer, await source.find_peer(peer))

    async def _connect(self, peer: PeerId, target: _Target, use: Use) -> None:
        known = self._context.address_book.with_origins(peer)
        addresses = self._context.dial_policy.choose(known, self._host.addresses, trio.current_time())
        connection = await self._host.connect(peer, addresses)
        relayed = self._host.path(peer) is PathKind.RELAYED
        context = self._context
        async with open_peer_session(
            self._host, peer, self._hello(), context.session_timeout, offload=context.offload
        ) as session:
            reached = connection.address if connection.direction is Direction.OUTBOUND else None
            await self._context.address_book.reached(peer, reached)
            self._by_peer[peer] = session
            if relayed:
                self._relayed.add(session)
            opened_at, target.error = trio.current_time(), None
            self._changed.unpark_all()
            try:
                await use(session)
            finally:
                target.worked_for = trio.current_time() - opened_at
                if self._by_peer.get(peer) is session:
                    del self._by_peer[peer]
                self._relayed.discard(session)
                self._context.address_book.seen(peer)
                self._changed.unpark_all()


async def _end_when_idle(session: PeerSession) -> None:
    while session.busy and not session.over.is_set():  # noqa: ASYNC110 - rare: not worth an event at each call
        await trio.sleep(IDLE_CHECK_INTERVAL)
    session.end(PeerUnreachable("the session changes over to a direct path"))
