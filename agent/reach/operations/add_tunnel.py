"""Forward a port of this node to a VM of a peer."""

from __future__ import annotations

import msgspec

from ....protocols.access import Caller
from ....protocols.errors import Forbidden, Unsupported
from ....protocols.services import VmService
from ....protocols.vm import Forward
from ...journal.active import ActiveOperation
from ...journal.operation import Release, nothing_claimed
from ...limits import has_no_place
from ...vm.forwards import check_bind
from ..tunnels import MAX_KEPT, Tunnel
from .base import TunnelOperation


class AddTunnel(TunnelOperation):
    method = VmService.add_forward
    kind = "add_tunnel"

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        tunnels, asked = self.services, active.request
        check_bind(caller, asked.forward)
        if asked.forward.protocol != "tcp":
            raise Unsupported("only tcp can be forwarded")
        own = sum(tunnel.owner == active.principal for tunnel in tunnels.kept.values())
        if has_no_place(MAX_KEPT, len(tunnels.kept), own):
            raise Forbidden(f"this node keeps {MAX_KEPT} tunnels at most")
        answer = await tunnels.probe(asked.peer, asked.vm, asked.forward.guest_port, caller)
        tunnel = Tunnel(
            peer=asked.peer,
            vm_id=answer.vm_id,
            vm_name=answer.vm_name,
            spec=asked.forward,
            owner=active.principal,
            role=caller.role,
            until=caller.until,
        )
        tunnels.ports.check(tunnel.spec, tunnel.user)
        active.notes = {"tunnel": msgspec.to_builtins(tunnel)}
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Forward:
        tunnel, ports = msgspec.convert(active.notes["tunnel"], Tunnel), self.services.ports
        spec = msgspec.structs.replace(tunnel.spec, host_port=active.notes.get("port") or tunnel.spec.host_port)
        if not spec.host_port:
            [spec] = await ports.choose([spec])
        tunnel = msgspec.structs.replace(tunnel, spec=spec)
        with ports.claimed(spec, tunnel.user):
            if spec != active.request.forward:
                await active.step("port", port=spec.host_port)
            await self.services.open(tunnel)
        return self.services.view(tunnel)
