"""The VMs of the fleet: every peer's last answer with its time. A merged list always answers, whoever is away."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Role
from ...protocols.errors import TwinshareError
from ...protocols.messages import Follow
from ...protocols.services import VmService
from ...protocols.table import methods
from ...protocols.vm import Vm
from .calls import PeerCalls
from .host import PeerId
from .line import Feed, Line
from .parts import Parts

log = structlog.get_logger(__name__)
LIST_VMS = methods(VmService)["list_vms"]
PATIENCE = 1.5
"""Seconds that a listing waits for a peer."""
MAX_ROWS = 10_000
QUIET = 0.2
"""Seconds in which a peer's events are gathered before it is asked again."""
READER = Caller(principal="local", role=Role.VIEWER)


class FleetInventory:
    """What the peers last said. While a peer is online its events keep that fresh, so that little is lost with it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._last: dict[PeerId, list[Vm]] = {}

    async def vms(self, caller: Caller, online: list[PeerId], calls: PeerCalls | None) -> list[Vm]:
        """All VMs, this node's first; the rows of peers that do not answer in time say `reachable: false`."""
        parts = self._parts
        rows = _told(await parts.dispatcher.call(caller, LIST_VMS, {}), parts.name, parts.now())
        answered: set[PeerId] = set()
        async with trio.open_nursery() as nursery:
            if calls is not None:
                for peer in online:
                    nursery.start_soon(self._ask, caller, peer, calls, answered)
        members = {certificate.sub for certificate in parts.membership.peers}
        self._last = {peer: vms for peer, vms in self._last.items() if peer in members}
        for peer, vms in self._last.items():
            rows += vms if peer in answered else [msgspec.structs.replace(vm, reachable=False) for vm in vms]
        return rows[:MAX_ROWS]

    async def follow(self, line: Line, calls: PeerCalls) -> None:
        """Keep one peer's rows fresh for as long as its line lives."""
        try:
            async with line.follow(Follow(types=["vm."])) as feed:
                while not line.over.is_set():
                    await self._ask(READER, line.peer_id, calls, set())
                    if not await _news(feed):
                        return
        except TwinshareError as error:
            log.debug("a peer's events cannot be followed", peer=line.peer_id, why=error.message)

    async def _ask(self, caller: Caller, peer: PeerId, calls: PeerCalls, answered: set[PeerId]) -> None:
        with trio.move_on_after(PATIENCE):
            try:
                found: list[Vm] = await calls.call(peer, LIST_VMS, {}, caller)
            except TwinshareError as error:
                log.debug("a peer did not tell its VMs", peer=peer, why=error.message)
                return
            known = self._parts.membership.known(peer)
            self._last[peer] = _told(found, known.name if known else peer, self._parts.now())
            answered.add(peer)


async def _news(feed: Feed) -> bool:
    """Wait for an event, and gather those that follow it closely; False at the feed's end."""
    async for _ in feed:
        with trio.move_on_after(QUIET):
            async for _ in feed:
                pass
        return True
    return False


def _told(vms: list[Vm], node: str, now: float) -> list[Vm]:
    at = datetime.fromtimestamp(now, UTC)
    return [
        msgspec.structs.replace(vm, node=vm.node or node, observed_at=vm.observed_at or at, reachable=True)
        for vm in vms
    ]
