"""Which ports of this node lead to guests, open or not: those of its VMs, of VMs being created, and of tunnels.

A stopped VM's port is not open, so the kernel would give it to the next who asks for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import NamedTuple

import msgspec

from ...protocols.errors import PortTaken
from ...protocols.vm import ForwardSpec
from ..relays import listen
from .inventory import Inventory


class PortUser(NamedTuple):
    """What a port leads to. `id` is a VM's ID, behind its peer's where it is a peer's VM."""

    id: str
    vm: str


class HostPorts:
    """The ports that VMs keep are read from the inventory; all others are claimed."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._claims: dict[object, tuple[PortUser, ForwardSpec]] = {}

    def _taken(self) -> Iterator[tuple[PortUser, ForwardSpec]]:
        yield from self._claims.values()
        for record in self._inventory.records():
            user = PortUser(record.domain.id, record.domain.name)
            yield from ((user, spec) for spec in record.metadata.forwards)
        for name, creating in self._inventory.creating.items():
            yield from ((PortUser("", name), spec) for spec in creating.forwards)

    def check(self, spec: ForwardSpec, user: PortUser | None = None) -> None:
        """Refuse a port that leads somewhere else, and for `user` to another port of its guest. Raises: PortTaken."""
        for other, taken in self._taken():
            if taken.host_port == spec.host_port and not (user is not None and other.id == user.id and taken == spec):
                message = f"port {spec.host_port} is forwarded to VM '{other.vm}'"
                raise PortTaken(message, port=spec.host_port, vm=other.vm)

    def claim(self, spec: ForwardSpec, user: PortUser) -> object:
        """Claim a port until `release` is called with what this returns. Raises: PortTaken."""
        self.check(spec, user)
        claim = object()
        self._claims[claim] = (user, spec)
        return claim

    def release(self, claim: object) -> None:
        self._claims.pop(claim, None)

    @contextmanager
    def claimed(self, spec: ForwardSpec, user: PortUser) -> Iterator[None]:
        """Claim a port for the block, in which it is written down where it is kept. Raises: PortTaken."""
        claim = self.claim(spec, user)
        try:
            yield
        finally:
            self.release(claim)

    async def choose(self, specs: Sequence[ForwardSpec]) -> Sequence[ForwardSpec]:
        """Try whether all ports are free, and choose those that are 0. Raises: PortTaken."""
        chosen = []
        async with AsyncExitStack() as tried:  # closes them at the end: no two are given the same port
            for spec in specs:
                port = 0
                while not port or (not spec.host_port and self._leads_somewhere(port)):
                    listeners = await listen(spec.bind, spec.host_port)
                    for listener in listeners:
                        await tried.enter_async_context(listener)
                    port = listeners[0].socket.getsockname()[1]
                chosen.append(msgspec.structs.replace(spec, host_port=port))
        return chosen

    def _leads_somewhere(self, port: int) -> bool:
        return any(taken.host_port == port for _, taken in self._taken())
