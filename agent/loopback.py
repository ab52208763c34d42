"""Addresses of 127.0.0.0/8 for VMs: each has one of its own on this node, and the node listens there on its ports.

On Linux all of 127.0.0.0/8 is the loopback. An address is derived from the node and the VM, so that the nodes of one
machine rarely meet; what collides goes on to the next one, and what was allotted is kept in the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence

import structlog
import trio

from ..protocols.errors import PortTaken
from .database import PASSING_FAULTS
from .relays import Admits, Dial, Relays
from .state import State

log = structlog.get_logger(__name__)

SCHEMA = "CREATE TABLE IF NOT EXISTS loopback_addresses (vm TEXT PRIMARY KEY, address TEXT NOT NULL) STRICT;"

FIRST = int(ipaddress.IPv4Address("127.128.0.0"))
"""127.64.0.0 to 127.127.255.255 are those of QEMU's forwards (hypervisor/libvirt/guest_streams.py)."""
COUNT = 126 << 16
ATTEMPTS = 4
"""Addresses that are tried for a new VM while another program listens on its ports."""
MAX_KEPT = 8192
MAX_LISTENERS = 1024


class LoopbackAddresses:
    """Made by `open_loopback_addresses`. `vm` is any key that names a VM; `admits` says who may connect."""

    def __init__(self, state: State, relays: Relays, admits: Admits, node: str, kept: dict[str, str]) -> None:
        self._state, self._relays, self._admits, self._node = state, relays, admits, node
        self._addresses = kept
        self._taken = set(kept.values())
        self._ports: dict[str, set[int]] = {}
        self._lock = trio.Lock()
        self._said: set[int] = set()

    def address(self, vm: str) -> str | None:
        """Return the address of a VM that was allotted one."""
        return self._addresses.get(vm)

    def ports(self, vm: str) -> Sequence[int]:
        """Return the ports that are open for a VM now."""
        return sorted(self._ports.get(vm, ()))

    @property
    def listeners(self) -> int:
        """The number of ports that are open for all VMs."""
        return sum(map(len, self._ports.values()))

    async def open(self, vm: str, dials: Mapping[int, Dial], limit: int = MAX_LISTENERS) -> str:
        """Open these ports of a VM and no others, as long as fewer than `limit` are open for all VMs; its address."""
        async with self._lock:
            address = self._addresses.get(vm)
            if address is None:
                address = await self._allot(vm, dials, limit)
            else:
                await self._listen(vm, address, dials, limit)
            return address

    def close(self, vm: str) -> None:
        """Close the ports of a VM and end the connections; it keeps its address."""
        for port in self._ports.pop(vm, ()):
            self._relays.close(_key(vm, port))

    async def forget(self, vm: str) -> None:
        """Close the ports of a VM that is gone, and free its address."""
        self.close(vm)
        if (address := self._addresses.pop(vm, None)) is not None:
            self._taken.discard(address)
            with contextlib.suppress(*PASSING_FAULTS):
                await self._state.execute("DELETE FROM loopback_addresses WHERE vm = ?", (vm,))

    async def _allot(self, vm: str, dials: Mapping[int, Dial], limit: int) -> str:
        """Take the first free address on which all ports can be opened, else the first free one."""
        first = None
        for address in self._candidates(vm):
            first = first or address
            if await self._listen(vm, address, dials, limit):
                break
            self.close(vm)
        else:
            address = str(first)
            await self._listen(vm, address, dials, limit)
        self._addresses[vm] = address
        self._taken.add(address)
        if len(self._addresses) > MAX_KEPT and (idle := next((k for k in self._addresses if k not in self._ports), "")):
            await self.forget(idle)
        # A disk that is full must not take the address away; the next start derives the same one.
        with contextlib.suppress(*PASSING_FAULTS):
            await self._state.execute("INSERT OR REPLACE INTO loopback_addresses VALUES (?, ?)", (vm, address))
        return address

    def _candidates(self, vm: str) -> Iterator[str]:
        start = int.from_bytes(hashlib.sha256(f"{self._node} {vm}".encode()).digest()[:8], "big")
        tried = 0
        for step in range(COUNT):
            address = ipaddress.IPv4Address(FIRST + (start + step) % COUNT)
            if address.packed[3] not in (0, 255) and str(address) not in self._taken:
                yield str(address)
                tried += 1
            if tried == ATTEMPTS:
                return

    async def _listen(self, vm: str, address: str, dials: Mapping[int, Dial], limit: int) -> bool:
        """Whether all ports are open."""
        there = self._ports.setdefault(vm, set())
        for port in there - set(dials):
            self._relays.close(_key(vm, port))
            there.discard(port)
        for port, dial in dials.items():
            if port in there or self.listeners >= limit:
                continue
            try:
                await self._relays.open(_key(vm, port), address, port, dial, self._admits)
                there.add(port)
            except PortTaken as error:
                if port not in self._said:
                    self._said.add(port)
                    log.info("a port of the VMs' addresses cannot be opened", port=port, why=error.message)
        return len(there) == len(dials)


def _key(vm: str, port: int) -> tuple[str, ...]:
    return ("loopback", vm, str(port))


async def open_loopback_addresses(state: State, relays: Relays, admits: Admits, node: str) -> LoopbackAddresses:
    """Return the addresses of the node with this ID; its database was opened with `SCHEMA`."""
    rows = await state.query("SELECT vm, address FROM loopback_addresses")
    return LoopbackAddresses(state, relays, admits, node, dict(rows))
