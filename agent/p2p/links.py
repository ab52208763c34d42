"""A line to every member: dialled, kept, dialled again when it breaks. Who is online is who has a line with us."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable

import structlog
import trio

from ...protocols.errors import PeerUnreachable, TwinshareError
from ...protocols.messages import Hello
from .host import DIAL_DEADLINE, Direction, Host, Path, PeerId
from .line import Line, open_line
from .parts import Parts

log = structlog.get_logger(__name__)
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
MISSED_PAUSE = 6.0
"""The longest pause while a peer was seen in the last hour: after a cut it is found in under 10 s, jitter and all."""
MISSED_FOR = 3600.0
STEADY = 5.0
"""Seconds that a line must have lived for its end to be news, not a rhythm."""
IDLE_LOOK = 0.1

Use = Callable[[Line], Awaitable[None]]


class Backoff:
    """Pauses that double, each up to half shorter or longer, so that nodes do not knock in step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._pause = rng, FIRST_PAUSE

    def next(self, longest: float = LONGEST_PAUSE) -> float:
        """Seconds."""
        pause = min(self._pause, longest) * self._rng.uniform(0.5, 1.5)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return pause

    def reset(self) -> None:
        self._pause = FIRST_PAUSE

    @property
    def patient(self) -> bool:
        """Whether it has failed for a while: about the third time."""
        return self._pause >= FIRST_PAUSE * 4


class Links:
    """Works in the nursery of `Mesh`. `use` runs with every new line for as long as it lives."""

    def __init__(self, host: Host, parts: Parts, hello: Callable[[], Hello], use: Use, nursery: trio.Nursery) -> None:
        self._host, self._parts, self._hello = host, parts, hello
        self._use, self._nursery = use, nursery
        self._keepers: dict[PeerId, trio.CancelScope] = {}
        self._lines: dict[PeerId, Line] = {}
        self._pokes: dict[PeerId, trio.lowlevel.ParkingLot] = {}
        self._poked: set[PeerId] = set()
        self._errors: dict[PeerId, TwinshareError] = {}
        self._relayed: set[Line] = set()
        self._changed = trio.lowlevel.ParkingLot()
        # Asks others where a peer is that is not found at its known addresses; hints come by `poke`.
        self.seek: Callable[[PeerId], Awaitable[None]] | None = None

    @property
    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def online(self, peer: PeerId) -> bool:
        return peer in self._lines

    def want(self, peers: Iterable[PeerId]) -> None:
        """Keep a line to each of these peers, and to no other."""
        wanted = set(peers)
        for peer in wanted - self._keepers.keys():
            self._keepers[peer] = scope = trio.CancelScope()
            self._pokes[peer] = trio.lowlevel.ParkingLot()
            self._nursery.start_soon(self._keep, peer, scope, name=f"line to {peer}")
        for peer in self._keepers.keys() - wanted:
            self._keepers.pop(peer).cancel()

    def poke(self, peer: PeerId) -> None:
        """There is reason to try again at once."""
        if peer in self._pokes:
            self._poked.add(peer)
            self._pokes[peer].unpark_all()

    def change_over(self, peer: PeerId) -> None:
        """The peer can be reached directly: a line through a relay gives way to a new one once it has no call."""
        line = self._lines.get(peer)
        if line in self._relayed:
            self._relayed.discard(line)
            self._nursery.start_soon(_end_when_idle, line)

    async def line_to(self, peer: PeerId) -> Line:
        """The line, or within `DIAL_DEADLINE` why there is none. Raises: PeerUnreachable."""
        if line := self._live(peer):
            return line
        self.poke(peer)
        with trio.move_on_after(DIAL_DEADLINE):
            while peer in self._keepers:
                if line := self._live(peer):
                    return line
                before = self._errors.get(peer)
                await self._changed.park()
                if self._errors.get(peer) not in {before, None}:
                    break
        error = self._errors.get(peer)
        why = f": {error.message}" if error else ""
        raise PeerUnreachable(f"{self._parts.title(peer)} cannot be reached{why}", peer=peer)

    def _live(self, peer: PeerId) -> Line | None:
        line = self._lines.get(peer)
        return line if line and line.error is None else None

    async def settle(self, patience: float) -> None:
        """Wait a while, until every peer that we want was reached or was not."""
        with trio.move_on_after(patience):
            while any(peer not in self._lines and peer not in self._errors for peer in self._keepers):
                await self._changed.park()

    async def _keep(self, peer: PeerId, scope: trio.CancelScope) -> None:
        pauses = Backoff(self._parts.rng)
        with scope:
            while True:
                try:
                    await self._connect(peer, pauses)
                except TwinshareError as error:
                    log.debug("no line", peer=peer, why=error.message)
                    self._errors[peer] = error
                    self._changed.unpark_all()
                    if self.seek is not None and pauses.patient:
                        await self.seek(peer)
                with trio.move_on_after(pauses.next(self._longest_pause(peer))):
                    if peer not in self._poked:
                        await self._pokes[peer].park()
                self._poked.discard(peer)
        if self._keepers.get(peer) in {None, scope}:
            self._pokes.pop(peer, None)
            self._errors.pop(peer, None)

    def _longest_pause(self, peer: PeerId) -> float:
        seen = self._parts.directory.last_seen(peer)
        return MISSED_PAUSE if seen is not None and self._parts.now() - seen < MISSED_FOR else LONGEST_PAUSE

    async def _connect(self, peer: PeerId, pauses: Backoff) -> None:
        connection = await self._host.connect(peer, self._parts.directory.addresses(peer))
        relayed = self._host.path(peer) is Path.RELAYED
        async with open_line(self._host, peer, self._hello(), self._parts.line_silence) as line:
            reached = connection.address if connection.direction is Direction.OUTBOUND else None
            await self._parts.directory.reached(peer, reached)
            since = trio.current_time()
            self._lines[peer] = line
            if relayed:
                self._relayed.add(line)
            self._errors.pop(peer, None)
            self._changed.unpark_all()
            try:
                await self._use(line)
            finally:
                if trio.current_time() - since >= STEADY:
                    pauses.reset()
                if self._lines.get(peer) is line:
                    del self._lines[peer]
                self._relayed.discard(line)
                self._parts.directory.seen(peer)
                self._changed.unpark_all()


async def _end_when_idle(line: Line) -> None:
    while line.busy and not line.over.is_set():  # noqa: ASYNC110 - a rare moment is not worth an event at each call
        await trio.sleep(IDLE_LOOK)
    line.end(PeerUnreachable("the line changes over to a direct path"))
