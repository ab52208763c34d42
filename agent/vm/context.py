"""The services that operations on VMs work with."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import trio

from ...protocols.access import Caller
from ...protocols.errors import HypervisorDown, VmNotFound, WrongState
from ...protocols.vm import Vm, VmStatus
from ..config import HypervisorConfig
from ..hypervisor.port import Hypervisor
from ..images.port import ImageStore
from .addresses import GuestAddresses
from .admission import Admission
from .files import VmFiles
from .forwards import Forwards
from .image_resolver import ImageResolver
from .inventory import Inventory
from .record import Record

MAX_UNDEFINE_ATTEMPTS = 2
"""A start whose QEMU is killed is begun a second time by libvirt's thread."""


@dataclass(slots=True)
class VmContext:
    """What the VMs of a node are made with, and the steps that several operations share.

    `node_key` is a blocking call: the SSH key that new guests let in, empty for none.
    By a VM's ID: `forced` counts the operations with force that are waiting or at work, `guest_waits` are the waits for
    a guest's shutdown that they end.
    """

    hypervisor: Hypervisor
    images: ImageStore
    resolver: ImageResolver
    inventory: Inventory
    forwards: Forwards
    addresses: GuestAddresses
    admission: Admission
    files: VmFiles
    limits: HypervisorConfig
    node_key: Callable[[], str]
    locks: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)
    metadata_locks: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)
    forced: Counter[str] = field(default_factory=Counter)
    guest_waits: dict[str, trio.CancelScope] = field(default_factory=dict)

    def require_hypervisor(self) -> None:
        """Raises: HypervisorDown."""
        if not self.hypervisor.connected:
            raise HypervisorDown("the hypervisor does not answer now; try again in a moment")

    def owned(self, caller: Caller, vm: str) -> Record:
        """A VM that the caller may change. Raises: VmNotFound, Forbidden, HypervisorDown."""
        record = self.inventory.find(vm)
        caller.require_ownership(record.metadata.owner, f"VM '{record.domain.name}'")
        self.require_hypervisor()
        return record

    async def record(self, id: str) -> Record:
        """A VM as the hypervisor sees it now. Raises: VmNotFound, HypervisorDown, DeadlineExceeded."""
        if record := await self.inventory.refresh(id):
            return record
        raise VmNotFound(f"Virtual machine '{id}' not found", vm=id)

    @asynccontextmanager
    async def locked(
        self, id: str, shown_as: VmStatus | None = None, making: Vm | None = None, *, force: bool = False
    ) -> AsyncIterator[None]:
        """Hold a VM's lock: operations on one VM follow each other. Meanwhile it is shown as `shown_as`.

        `making` is shown in place of a VM that is not there yet. `force` ends the waits for the guest's shutdown
        before it, so that an operation that powers the VM off does not queue behind them.
        """
        self._begin_force(id, force)
        try:
            async with self.locks.setdefault(id, trio.Lock()):
                with self.inventory.at_work(id, shown_as, making):
                    yield
                    await self.inventory.refresh(id)
        finally:
            self.forced[id] -= force
            self.forced += Counter()  # drops the zeros

    def _begin_force(self, id: str, force: bool) -> None:
        self.forced[id] += force
        if force and id in self.guest_waits:
            self.guest_waits[id].cancel()

    @asynccontextmanager
    async def metadata_locked(self, id: str) -> AsyncIterator[None]:
        """Hold the lock of a VM's metadata: what changes only them does not wait for a guest that shuts down."""
        async with self.metadata_locks.setdefault(id, trio.Lock()):
            yield
            await self.inventory.refresh(id)

    async def wait_for_guest(self, id: str, timeout: float, wait: Callable[[str], Awaitable[object]]) -> bool:
        """Wait for a guest for `timeout` seconds at most; False when it did not come to it.

        Raises: WrongState when an operation with force overrules the wait.
        """
        with trio.move_on_after(timeout) as scope:
            self.guest_waits[id] = scope
            try:
                if not self.forced[id]:
                    await wait(id)
                    return True
            finally:
                del self.guest_waits[id]
        if self.forced[id]:
            raise WrongState("overruled by a later operation on this VM with force", vm=id)
        return False

    async def boot(self, id: str) -> None:
        """Start a VM, and open the ports that lead to the guest before callers learn that it runs."""
        await self.hypervisor.start(id)
        if record := await self.inventory.refresh(id):
            await self.forwards.reconcile(record)
            await self.addresses.reconcile(record)

    async def undefine(self, id: str) -> None:
        """End a VM and undefine it. A start that was given up and completes only now is ended as well."""
        async with self.metadata_locks.setdefault(id, trio.Lock()):
            for _ in range(MAX_UNDEFINE_ATTEMPTS):
                await self.hypervisor.destroy(id)
                with suppress(WrongState):
                    await self.hypervisor.undefine(id)
                    return
            await self.hypervisor.destroy(id)
            await self.hypervisor.undefine(id)

    def users_of(self, digest: str) -> Sequence[str]:
        """The names of the VMs that stand on an image, the ones being created and the disks that were kept included."""
        making = [name for name, base in self.resolver.reserved.items() if base == digest]
        kept = [f"the kept disk of {name}" for name in self.files.kept_disks(digest)]
        return sorted({*self.inventory.used_by(digest), *making, *kept})

    def all_users_of(self, digest: str) -> Sequence[str]:
        """The same, to decide on what is removed.

        Raises: HypervisorDown while there may be VMs that the hypervisor has not listed yet.
        """
        if not self.inventory.is_complete and self.files.has_vms():
            raise HypervisorDown(
                "the hypervisor has not listed its VMs yet, and images may be under their disks; "
                "no image is removed before"
            )
        return self.users_of(digest)
