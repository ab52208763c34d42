"""Close a port of this node that leads to a VM of a peer."""

from __future__ import annotations

import msgspec

from ....protocols.access import Caller
from ....protocols.errors import Forbidden, ForwardNotFound
from ....protocols.services import VmService
from ....protocols.vm import Forward, ForwardSpec
from ...journal.active import ActiveOperation
from ...journal.operation import Release, nothing_claimed
from ...vm.forwards import forward_view
from .base import TunnelOperation


class RemoveTunnel(TunnelOperation):
    method = VmService.remove_forward
    kind = "remove_tunnel"
    runs_on_full_disk = True

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        asked = active.request
        tunnel = next(
            (one for one in self.services.of(asked.peer, asked.vm) if one.spec.host_port == asked.host_port), None
        )
        if tunnel is None:
            raise ForwardNotFound(
                f"no port {asked.host_port} of this node leads to VM '{asked.vm}'", port=asked.host_port
            )
        if not caller.may_change(tunnel.owner):
            raise Forbidden(f"the tunnel belongs to {tunnel.owner}; this needs the role admin", role_needed="admin")
        active.notes = {"key": list(tunnel.key), "forward": msgspec.to_builtins(tunnel.spec)}
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Forward:
        await self.services.forget(tuple(active.notes["key"]))
        noted = active.notes.get("forward") or {"host_port": active.request.host_port, "guest_port": 1}
        return forward_view(ForwardSpec(**noted), active=False)
