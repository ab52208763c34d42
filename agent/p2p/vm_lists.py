"""The last VM list of each peer. It outlives the agent on the store: an absent peer's VMs are known after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from ...protocols.errors import TwinshareError
from ...protocols.tolerant import decode_tolerantly
from ...protocols.vm import Vm
from .host import PeerId
from .store import KeyValueStore

log = structlog.get_logger(__name__)

KIND = "vms"
MAX_STORED = 4 << 20
"""Bytes that are stored of one peer's list; a longer one is kept in memory alone."""
SAVE_INTERVAL = 5.0
"""Seconds between two writes of one peer's list, but for the last one."""


class KeptVms(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer answered, and when, in seconds of the epoch."""

    at: float
    vms: list[Vm]

    @property
    def observed_at(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


class VmLists:
    """Made by `open_vm_lists`."""

    def __init__(self, store: KeyValueStore, now: Callable[[], float]) -> None:
        self._store, self._now = store, now
        self._last: dict[PeerId, KeptVms] = {}
        self._saved_at: dict[PeerId, float] = {}
        self._unsaved: set[PeerId] = set()

    def get(self, peer: PeerId) -> KeptVms | None:
        return self._last.get(peer)

    async def keep(self, peer: PeerId, vms: list[Vm]) -> None:
        """Keep a peer's newest list; it is written when a VM has come, gone or changed."""
        before, now = self._last.get(peer), self._now()
        self._last[peer] = KeptVms(at=now, vms=vms)
        if before is None or _lasting(before.vms) != _lasting(vms):
            self._unsaved.add(peer)
        if peer in self._unsaved and abs(now - self._saved_at.get(peer, 0.0)) >= SAVE_INTERVAL:
            await self._save(peer)

    async def save(self) -> None:
        """Write what was not written yet."""
        for peer in list(self._unsaved):
            await self._save(peer)

    async def keep_only(self, members: Iterable[PeerId]) -> None:
        """Forget the lists of those who have left the fleet."""
        for peer in self._last.keys() - set(members):
            del self._last[peer]
            self._unsaved.discard(peer)
            await self._write(peer, None)

    async def _save(self, peer: PeerId) -> None:
        self._unsaved.discard(peer)
        self._saved_at[peer] = self._now()
        packed = msgspec.msgpack.encode(self._last[peer])
        await self._write(peer, packed if len(packed) <= MAX_STORED else None)

    async def _write(self, peer: PeerId, packed: bytes | None) -> None:
        """Best effort: a full or busy disk must not keep a list from being shown."""
        try:
            if packed is None:
                await self._store.drop(KIND, peer)
            else:
                await self._store.put(KIND, peer, packed)
        except TwinshareError as error:
            log.warning("cannot store the VM list of a peer", peer=peer, error=error.message)

    async def load(self) -> None:
        for peer, packed in (await self._store.load(KIND)).items():
            try:
                self._last[peer] = decode_tolerantly(packed, KeptVms)
            except (msgspec.MsgspecError, ValueError) as error:
                log.warning("a stored VM list is not understood", peer=peer, error=str(error))


def _lasting(vms: Sequence[Vm]) -> list[Vm]:
    """The VMs without what changes from second to second."""
    return [msgspec.structs.replace(vm, observed_at=None, uptime=None) for vm in vms]


async def open_vm_lists(store: KeyValueStore, now: Callable[[], float]) -> VmLists:
    """The lists on the store."""
    lists = VmLists(store, now)
    await lists.load()
    return lists
