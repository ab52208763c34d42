"""One list of all VMs of all known peers. It always answers: for a peer that is away stands what it last said."""

from __future__ import annotations

import msgspec
import trio

from ...agent.node import Node
from ...protocols.access import Caller
from ...protocols.errors import TwinshareError, Unavailable
from ...protocols.peer import PeerInfo
from ...protocols.vm import Vm
from .dialect import TABLE

PATIENCE = 1.5
MAX_ROWS = 10_000


class Fleet:
    """The fleet as this node sees it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._last: dict[str, list[Vm]] = {}

    async def vms(self, caller: Caller) -> list[Vm]:
        """Every VM, this node's first. A peer that does not answer in time has its rows marked unreachable."""
        rows: list[Vm] = list(await self._node.call(caller, TABLE["list_vms"], {}))
        peers = await self._peers(caller)
        answers: dict[str, list[Vm]] = {}
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self._ask, caller, peer, answers)
        self._last = {peer.id: self._last[peer.id] for peer in peers if peer.id in self._last} | answers
        for peer in peers:
            known = self._last.get(peer.id, [])
            rows += known if peer.id in answers else [msgspec.structs.replace(vm, reachable=False) for vm in known]
        return rows[:MAX_ROWS]

    async def _peers(self, caller: Caller) -> list[PeerInfo]:
        try:
            return list(await self._node.call(caller, TABLE["list_peers"], {}))
        except Unavailable:
            # Without P2P services the fleet is this node.
            return []

    async def _ask(self, caller: Caller, peer: PeerInfo, answers: dict[str, list[Vm]]) -> None:
        with trio.move_on_after(PATIENCE):
            try:
                found: list[Vm] = await self._node.call(caller, TABLE["list_vms"], {}, peer.id)
            except TwinshareError:
                return
            answers[peer.id] = [vm if vm.node else msgspec.structs.replace(vm, node=peer.name) for vm in found]
