"""The port forwards and VNC ports of the node's VMs: kept in each domain's metadata, open while it runs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Role
from ...protocols.errors import Forbidden, ForwardNotFound, PortTaken, Unsupported
from ...protocols.vm import MAX_FORWARDS, Forward, ForwardSpec
from ..hypervisor.port import GuestStreams, Hypervisor
from ..relays import Admits, Dial, Relays
from .host_ports import HostPorts, PortUser
from .inventory import Inventory
from .record import Record

log = structlog.get_logger(__name__)


class Forwards:
    """`admits` says which connections may reach a guest's screen."""

    def __init__(
        self, hypervisor: Hypervisor, inventory: Inventory, relays: Relays, ports: HostPorts, admits: Admits
    ) -> None:
        self.ports = ports
        self._hypervisor, self._inventory, self._relays = hypervisor, inventory, relays
        self._admits = admits

    def list(self, record: Record) -> Sequence[Forward]:
        return [self.view(record, spec) for spec in record.metadata.forwards]

    def view(self, record: Record, spec: ForwardSpec) -> Forward:
        return forward_view(spec, active=self._relays.port(_key(record.domain.id, spec)) is not None)

    def find(self, record: Record, host_port: int) -> ForwardSpec:
        """Raises: ForwardNotFound."""
        for spec in record.metadata.forwards:
            if spec.host_port == host_port:
                return spec
        raise ForwardNotFound(f"VM '{record.domain.name}' has no forward on port {host_port}", port=host_port)

    def check(self, record: Record, spec: ForwardSpec) -> None:
        """Refuse a forward that cannot be added. Raises: PortTaken, Unsupported, Forbidden."""
        self._check_supported(spec)
        if len(record.metadata.forwards) >= MAX_FORWARDS:
            raise Forbidden(f"a VM can have {MAX_FORWARDS} forwards")
        self.ports.check(spec, PortUser(record.domain.id, record.domain.name))

    def check_new(self, specs: Iterable[ForwardSpec]) -> None:
        """Refuse forwards that a VM cannot be created with. Raises: PortTaken, Unsupported."""
        for spec in specs:
            self._check_supported(spec)
            self.ports.check(spec)

    def _check_supported(self, spec: ForwardSpec) -> None:
        if spec.protocol != "tcp":
            raise Unsupported("only tcp can be forwarded")
        if not isinstance(self._hypervisor, GuestStreams):
            raise Unsupported(f"the hypervisor '{self._hypervisor.features.name}' cannot reach its guests' ports")

    def claimed(self, record: Record, spec: ForwardSpec) -> AbstractContextManager[None]:
        """Claim a host port for the block, in which it is added to the VM's metadata. Raises: PortTaken."""
        return self.ports.claimed(spec, PortUser(record.domain.id, record.domain.name))

    def require_open(self, record: Record) -> None:
        """Raises: PortTaken if a forward of a running VM could not be opened."""
        for spec in record.metadata.forwards:
            if not self.view(record, spec).active:
                raise PortTaken(
                    f"port {spec.host_port} on {spec.bind} cannot be opened; choose another host_port",
                    port=spec.host_port,
                    bind=spec.bind,
                )

    async def open(self, record: Record, spec: ForwardSpec) -> int:
        """Open the port of a running VM, or try whether it is free; return it. Raises: PortTaken."""
        if record.active and spec.host_port:
            key, dial = _key(record.domain.id, spec), self._dial(record, spec)
            return await self._relays.open(key, spec.bind, spec.host_port, dial)
        [chosen] = await self.ports.choose([spec])
        return chosen.host_port

    def abandon(self, record: Record, spec: ForwardSpec) -> None:
        """Close the port of a forward that was opened and could not be kept."""
        self._relays.close(_key(record.domain.id, spec))

    async def keep(self, record: Record, forwards: Iterable[ForwardSpec]) -> None:
        """Write a VM's forwards into its metadata; its lock is held."""
        metadata = msgspec.structs.replace(record.metadata, forwards=[*forwards])
        await self._hypervisor.set_metadata(record.domain.id, metadata.to_text())

    async def reconcile(self, record: Record) -> None:
        """Open what should be open for a VM, close what should not."""
        id = record.domain.id
        wanted = {_key(id, spec): spec for spec in record.metadata.forwards} if record.active else {}
        for key in self._relays.keys(id):
            if key not in wanted and not (record.active and key == (id, "vnc")):
                self._relays.close(key)
        unopened = []
        for key, spec in wanted.items():
            try:
                await self._relays.open(key, spec.bind, spec.host_port, self._dial(record, spec))
            except PortTaken as error:
                unopened.append(f"a forward is closed and tried again: {error.message}")
        self._note_unopened(record, tuple(unopened))
        await self._reconcile_screen(record)

    def _note_unopened(self, record: Record, unopened: tuple[str, ...]) -> None:
        id, noted = record.domain.id, self._inventory.unopened
        if unopened and noted.get(id) != unopened:
            log.warning("ports cannot be opened", vm=record.domain.name, why=unopened)
        if unopened:
            noted[id] = unopened
        else:
            noted.pop(id, None)

    async def _reconcile_screen(self, record: Record) -> None:
        id = record.domain.id
        if record.active and isinstance(self._hypervisor, GuestStreams):
            dial = partial(self._hypervisor.dial_screen, id)
            self._inventory.vnc_ports[id] = await self._relays.open((id, "vnc"), "127.0.0.1", 0, dial, self._admits)
        else:
            self._inventory.vnc_ports.pop(id, None)

    def close(self, id: str) -> None:
        """Close all that leads to a VM which is gone."""
        for key in self._relays.keys(id):
            self._relays.close(key)
        self._inventory.vnc_ports.pop(id, None)
        self._inventory.unopened.pop(id, None)

    def _dial(self, record: Record, spec: ForwardSpec) -> Dial:
        return partial(self.dial, record, spec.guest_port)

    async def dial(self, record: Record, port: int) -> trio.SocketStream:
        """A connection to the guest's port. Raises: WrongState, Unsupported, OSError when nothing answers."""
        if not isinstance(self._hypervisor, GuestStreams):
            raise Unsupported(f"the hypervisor '{self._hypervisor.features.name}' cannot reach its guests' ports")
        return await self._hypervisor.dial_guest(record.domain.id, port)


def forward_view(spec: ForwardSpec, *, active: bool) -> Forward:
    """A forward as callers see it; `active` while the port is open."""
    return Forward(
        host_port=spec.host_port, guest_port=spec.guest_port, protocol=spec.protocol, bind=spec.bind, active=active
    )


def check_bind(caller: Caller, spec: ForwardSpec) -> None:
    """Require the role admin to open this machine to the network. Raises: Forbidden."""
    if caller.role is not Role.ADMIN and not ipaddress.ip_address(spec.bind).is_loopback:
        raise Forbidden(
            f"an operator forwards ports of the node's loopback, 127.0.0.1; bind {spec.bind} needs the role admin",
            role_needed=str(Role.ADMIN),
        )


def _key(id: str, spec: ForwardSpec) -> tuple[str, ...]:
    return (id, spec.bind, str(spec.host_port), str(spec.guest_port), spec.protocol)
