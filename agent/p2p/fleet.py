"""The VMs of the fleet: every peer's last answer with its time. A merged list always answers, whoever is away."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Role
from ...protocols.errors import TwinshareError
from ...protocols.messages import Follow
from ...protocols.peer import AbsentPeer, FleetVms
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
QUIET = 0.2
"""Seconds without an event of a peer after which it is asked again."""
OFFLINE = "it is offline"
STOPPED = "the P2P services of this node are off"
READER = Caller(principal="local", role=Role.VIEWER)


class FleetInventory:
    """Lists the VMs of all peers. While a peer is online, its events refresh what is kept of it."""

    def __init__(self, context: MeshContext, dispatcher: Dispatcher) -> None:
        self._context, self._dispatcher = context, dispatcher

    async def vms(self, caller: Caller, online: list[PeerId], calls: PeerCalls | None) -> FleetVms:
        """All VMs, this node's first; the rows of peers that do not answer in time say `reachable: false`."""
        context = self._context
        rows = _stamped(await self._dispatcher.call(caller, LIST_VMS, {}), context.name, context.now())
        members = [certificate.sub for certificate in context.membership.peers]
        failures = {peer: OFFLINE if calls is not None else STOPPED for peer in members if peer not in online}
        async with trio.open_nursery() as nursery:
            if calls is not None:
                for peer in online:
                    nursery.start_soon(self._ask, caller, peer, calls, failures)
        await context.vm_lists.keep_only(members)
        unreachable = []
        for peer in members:
            kept = context.vm_lists.get(peer)
            vms = kept.vms if kept is not None else []
            if (reason := failures.get(peer)) is not None:
                vms = [msgspec.structs.replace(vm, reachable=False) for vm in vms]
                at = kept.observed_at if kept is not None else None
                name = context.title(peer)
                unreachable.append(AbsentPeer(id=peer, name=name, reason=reason, vms=len(vms), observed_at=at))
            rows += vms
        return FleetVms(vms=rows, unreachable=unreachable)

    async def follow(self, session: PeerSession, calls: PeerCalls) -> None:
        """Keep one peer's rows fresh for as long as its session lives."""
        try:
            async with session.follow(Follow(types=["vm."])) as feed:
                while not session.over.is_set():
                    await self._ask(READER, session.peer_id, calls, {})
                    if not await _next_events(feed):
                        return
        except TwinshareError as error:
            log.debug("a peer's events cannot be followed", peer=session.peer_id, why=error.message)

    async def _ask(self, caller: Caller, peer: PeerId, calls: PeerCalls, failures: dict[PeerId, str]) -> None:
        context = self._context
        with trio.move_on_after(PEER_TIMEOUT) as timeout:
            try:
                found: list[Vm] = await calls.call(peer, LIST_VMS, {}, caller)
            except TwinshareError as error:
                log.debug("a peer did not list its VMs", peer=peer, why=error.message)
                failures[peer] = error.message
                return
        if timeout.cancelled_caught:
            failures[peer] = f"it did not answer in {PEER_TIMEOUT} s"
        else:
            await context.vm_lists.keep(peer, _stamped(found, context.title(peer), context.now()))


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
