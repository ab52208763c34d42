"""The address of each of this node's VMs: the guest's own where the network routes it, else one of the loopback."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from ..hypervisor.port import GuestStreams, Hypervisor
from ..loopback import LoopbackAddresses
from .forwards import Forwards
from .inventory import Inventory
from .record import Record

SSH = 22
LABEL = "ports"
MAX_PORTS = 32
"""Ports that are open for one VM, at most."""


class GuestAddresses:
    """Keeps the ports of running VMs open: SSH, those of forwards and of the label `ports`, those that a guest uses."""

    def __init__(
        self, hypervisor: Hypervisor, inventory: Inventory, forwards: Forwards, loopback: LoopbackAddresses
    ) -> None:
        self._hypervisor, self._inventory = hypervisor, inventory
        self._forwards, self._loopback = forwards, loopback
        self._listening: dict[str, Sequence[int]] = {}

    async def reconcile(self, record: Record) -> None:
        """Open the ports of a VM that runs, close those of one that does not."""
        id = record.domain.id
        if not record.active or not isinstance(self._hypervisor, GuestStreams):
            self.close(id)
            return
        ports = wanted_ports(record, self._listening.get(id, ()))
        address = await self._loopback.open(id, {port: partial(self._forwards.dial, record, port) for port in ports})
        self._inventory.loopback[id] = (address, tuple(self._loopback.ports(id)))

    async def listens(self, id: str, ports: Iterable[int], addresses: Sequence[str] = ()) -> None:
        """Take the ports on which a guest says that it listens, and its addresses; this shows that it has booted."""
        record = next((record for record in self._inventory.records() if record.domain.id == id), None)
        if record is None or not record.active:
            return
        self._listening[id] = sorted({port for port in ports if 0 < port < 65536})[:MAX_PORTS]
        self._inventory.answering.add(id)
        if id not in self._inventory.addresses and (guest_ip := first_address(addresses)):
            self._inventory.addresses[id] = guest_ip
        await self.reconcile(record)

    def close(self, id: str) -> None:
        """Close all ports of a VM; it keeps its address."""
        self._listening.pop(id, None)
        self._inventory.loopback.pop(id, None)
        self._loopback.close(id)

    async def forget(self, id: str) -> None:
        """Close the ports of a VM that is gone, and free its address."""
        self.close(id)
        await self._loopback.forget(id)


def first_address(addresses: Iterable[str]) -> str | None:
    """Return the first IP address of those that a guest tells."""
    for text in addresses:
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            continue
    return None


def wanted_ports(record: Record, listening: Iterable[int]) -> Sequence[int]:
    """Return the ports to open for a VM, at most `MAX_PORTS`; what people asked for comes first."""
    forwarded = [spec.guest_port for spec in record.metadata.forwards if spec.protocol == "tcp"]
    wanted = dict.fromkeys([SSH, *labelled_ports(record.metadata.labels), *forwarded, *listening])
    return list(wanted)[:MAX_PORTS]


def labelled_ports(labels: Mapping[str, str]) -> Sequence[int]:
    """Return the port numbers in the label `ports`, such as `80,8080`; what is no port number is left out."""
    words = labels.get(LABEL, "").replace(",", " ").split()
    numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) <= 5]
    return [number for number in numbers if 0 < number < 65536]
