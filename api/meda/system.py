"""`/api/v1/health` and `/api/v1/capacity`."""

from __future__ import annotations

from datetime import UTC, datetime

from ...agent.node import Node
from ...protocols.access import Caller, Role
from ...protocols.routes import rest
from .bodies import CapacityInfo, HealthInfo
from .capacity import capacity_info
from .table import TABLE


class MedaSystem:
    """The node itself.

    An instance serves one caller.
    """

    def __init__(self, node: Node, caller: Caller) -> None:
        self._node, self._caller = node, caller

    @rest("GET", "/health", Role.VIEWER)
    async def health(self) -> HealthInfo:
        """Show the health of the node."""
        found = await self._node.call(self._caller, TABLE["health"], {})
        status = "healthy" if found.status == "ok" else found.status
        return HealthInfo(status=status, version=found.version, timestamp=datetime.now(UTC))

    @rest("GET", "/capacity", Role.VIEWER)
    async def capacity(self) -> CapacityInfo:
        """Show the free capacity of the node."""
        return capacity_info(await self._node.call(self._caller, TABLE["capacity"], {}))
