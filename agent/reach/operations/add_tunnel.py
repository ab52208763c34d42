"""Forward a port of this node to a VM of a peer."""

from __future__ import annotations

import msgspec

from ....protocols.access import Caller
from ....protocols.errors import Forbidden, PortTaken, Unsupported
from ....protocols.services import VmService
from ....protocols.vm import Forward
from ...journal.active import ActiveOperation
from ...journal.operation import Release, nothing_claimed
from ...relays import listen
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
        if len(tunnels.kept) >= MAX_KEPT:
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
        there = tunnels.kept.get(tunnel.key)
        if there is not None and (there.peer, there.vm_id, there.spec) != (tunnel.peer, tunnel.vm_id, tunnel.spec):
            port = asked.forward.host_port
            raise PortTaken(f"port {port} is forwarded to VM '{there.vm_name}'", port=port)
        active.notes = {"tunnel": msgspec.to_builtins(tunnel)}
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Forward:
        tunnel = msgspec.convert(active.notes["tunnel"], Tunnel)
        if not tunnel.spec.host_port:
            port = active.notes.get("port") or await _free_port(tunnel.spec.bind)
            tunnel = msgspec.structs.replace(tunnel, spec=msgspec.structs.replace(tunnel.spec, host_port=port))
            await active.step("port", port=port)
        await self.services.open(tunnel)
        return self.services.view(tunnel)


async def _free_port(bind: str) -> int:
    listeners = await listen(bind, 0)
    port: int = listeners[0].socket.getsockname()[1]
    for listener in listeners:
        await listener.aclose()
    return port
