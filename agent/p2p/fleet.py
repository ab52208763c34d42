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
from ...protocols.table import Dispatcher, methods
from ...protocols.vm import Vm
from .calls import PeerCalls
from .context import MeshContext
from .host import PeerId
from .peer_session import Feed, PeerSession

log = structlog.get_logger(__name__)
LIST_VMS = methods(VmService)["list_vms"]
PEER_TIMEOUT = 1.5
"""Seconds that a listing waits for a peer."""
MAX_ROWS = 10_000
QUIET = 0.2
"""Seconds without an event of a peer after which it is asked again."""
READER = Caller(principal="local", role=Role.VIEWER)


class FleetInventory:
    """The last VM list of each peer. While a peer is online, its events refresh the list."""

    def __init__(self, context: MeshContext, dispatcher: Dispatcher) -> None:
        self._context, self._dispatcher = context, dispatcher
        self._last: dict[PeerId, list[Vm]] = {}

    async def vms(self, caller: Caller, online: list[PeerId], calls: PeerCalls | None) -> list[Vm]:
        """All VMs, this node's first; the rows of peers that do not answer in time say `reachable: false`."""
        context = self._context
        rows = _stamped(await self._dispatcher.call(caller, LIST_VMS, {}), context.name, context.now())
        answered: set[PeerId] = set()
        async with trio.open_nursery() as nursery:
            if calls is not None:
                for peer in online:
                    nursery.start_soon(self._ask, caller, peer, calls, answered)
        members = {certificate.sub for certificate in context.membership.peers}
        self._last = {peer: vms for peer, vms in self._last.items() if peer in members}
        for peer, vms in self._last.items():
            rows += vms if peer in answered else [msgspec.structs.replace(vm, reachable=False) for vm in vms]
        return rows[:MAX_ROWS]

    async def follow(self, session: PeerSession, calls: PeerCalls) -> None:
        """Keep one peer's rows fresh for as long as its session lives."""
        try:
            async with session.follow(Follow(types=["vm."])) as feed:
                while not session.over.is_set():
                    await self._ask(READER, session.peer_id, calls, set())
                    if not await _next_events(feed):
                        return
        except TwinshareError as error:
            log.debug("a peer's events cannot be followed", peer=session.peer_id, why=error.message)

    async def _ask(self, caller: Caller, peer: PeerId, calls: PeerCalls, answered: set[PeerId]) -> None:
        with trio.move_on_after(PEER_TIMEOUT):
            try:
                found: list[Vm] = await calls.call(peer, LIST_VMS, {}, caller)
            except TwinshareError as error:
                log.debug("a peer did not list its VMs", peer=peer, why=error.message)
                return
            known = self._context.membership.known(peer)
            self._last[peer] = _stamped(found, known.name if known else peer, self._context.now())
            answered.add(peer)


async def _next_events(feed: Feed) -> bool:
    """Wait for an event, and for those that follow within `QUIET` of it; False at the end of the feed."""
    async for _ in feed:
        with trio.move_on_after(QUIET):
            async for _ in feed:
                pass
        return True
    return False


def _stamped(vms: list[Vm], node: str, now: float) -> list[Vm]:
    at = datetime.fromtimestamp(now, UTC)
    return [
        msgspec.structs.replace(vm, node=vm.node or node, observed_at=vm.observed_at or at, reachable=True)
        for vm in vms
    ]
