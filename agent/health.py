"""How a node is, and what it has free: for `/api/health`, `/api/capacity` and the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..protocols.node import Capacity, Health
from .p2p.mesh_client import MeshClient
from .p2p.problems import membership_problems
from .vm.context import VmContext


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Reads the parts of a node. `p2p_wanted` is whether the configuration asks for peers.

    `backend_problems` are what the sandbox and the image store know to be wrong, in sentences.
    """

    name: str
    version: str
    p2p_wanted: bool
    vms: VmContext
    mesh: MeshClient
    backend_problems: Callable[[], Sequence[str]]
    started_at: float = field(default_factory=time.monotonic)

    @property
    def uptime(self) -> int:
        """Return the seconds since the agent was started."""
        return int(time.monotonic() - self.started_at)

    def capacity(self) -> Capacity:
        """Return the free capacity of the node, and what it is made of."""
        return self.vms.admission.capacity(self.vms.inventory.running())

    def report(self) -> Health:
        """Return the health of the node; `problems` are sentences that say what is wrong and what to do."""
        hypervisor = self.vms.hypervisor
        features = hypervisor.features
        return Health(
            status="ok" if hypervisor.connected else "degraded",
            name=self.name,
            version=self.version,
            peer_id=self.mesh.peer_id,
            hypervisor=features.name,
            accelerator=features.accelerator,
            p2p="started" if self.mesh.running else "stopped",
            vms=len(list(self.vms.inventory.records())),
            uptime=self.uptime,
            problems=self._problems(),
        )

    def _problems(self) -> list[str]:
        hypervisor = self.vms.hypervisor
        problems = [*hypervisor.features.problems, *self.backend_problems()]
        if self.p2p_wanted and self.mesh.running is None:
            problems.append("P2P services are not running: this node is alone; see `twinshare peer` and p2p.listen")
        problems += membership_problems(self.mesh.context)
        if not hypervisor.connected and not hypervisor.features.problems:
            problems.append("the hypervisor does not answer; the node is reconnecting")
        return problems
