"""The address book: where peers were reached, where they say they are, what others hint at. Nothing here is trusted.

Every address is confirmed by dialling, which proves the peer's key. What is known outlives the agent on the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from ...protocols.mesh import MAX_ADDRESSES, PeerRecord
from .addresses import MAX_LENGTH, bare
from .host import PeerId
from .records import latest_number
from .store import KeyValueStore

MAX_PEERS = 4096
MAX_HINTS = 8
KIND = "address"
SEEN_WRITTEN_EVERY = 60.0


class Origin(StrEnum):
    """Who says that a peer is at an address: a dial that reached it, the peer itself, somebody, the configuration."""

    REACHED = "reached"
    DECLARED = "declared"
    HINT = "hint"
    CONFIGURED = "configured"


class Entry(msgspec.Struct, kw_only=True):
    """What is known of a peer's addresses. `good` was reached, newest first; `last_seen` in seconds of the epoch."""

    declared: PeerRecord | None = None
    good: list[str] = []
    hints: list[str] = []
    last_seen: float | None = None


class AddressBook:
    """Made by `open_address_book`. `bootstrap` are configured multiaddrs; one without `/p2p/<id>` may be anybody's."""

    def __init__(self, store: KeyValueStore, bootstrap: Iterable[str], now: Callable[[], float]) -> None:
        self._store, self._now = store, now
        self._entries: dict[PeerId, Entry] = {}
        self._bootstrap = [
            address.rpartition("/p2p/") if "/p2p/" in address else (address, "", "") for address in bootstrap
        ]
        self._written: dict[PeerId, float] = {}

    def addresses(self, peer: PeerId) -> list[str]:
        """Where a peer may be, best first."""
        return [address for address, _ in self.with_origins(peer)]

    def with_origins(self, peer: PeerId) -> list[tuple[str, Origin]]:
        """Where a peer may be, best first, and who says so."""
        entry = self._entries.get(peer, Entry())
        declared = entry.declared.addresses if entry.declared else []
        configured = [address for address, _, whose in self._bootstrap if whose in {"", peer}]
        found: dict[str, Origin] = {}
        for origin, addresses in (
            (Origin.REACHED, entry.good),
            (Origin.DECLARED, declared),
            (Origin.HINT, entry.hints),
            (Origin.CONFIGURED, configured),
        ):
            found |= {address: origin for address in addresses if origin is Origin.CONFIGURED or address not in found}
        return list(found.items())

    def last_seen(self, peer: PeerId) -> float | None:
        return self._entries.get(peer, Entry()).last_seen

    def peer_records(self) -> list[PeerRecord]:
        """What to pass on."""
        return [entry.declared for entry in self._entries.values() if entry.declared]

    def has(self, record: PeerRecord) -> bool:
        """Return whether this very record is known, with its signature."""
        entry = self._entries.get(record.peer)
        return entry is not None and entry.declared is not None and entry.declared.token == record.token

    def hint(self, peer: PeerId, addresses: Iterable[str]) -> bool:
        """Somebody says that the peer is there; whether that was new."""
        entry = self._entry(peer)
        fresh = [address for address in _bounded(addresses) if address not in self.addresses(peer)]
        if entry is not None and fresh:
            entry.hints = (fresh + entry.hints)[:MAX_HINTS]
        return bool(fresh)

    async def declare(self, record: PeerRecord, *, first_hand: bool = False) -> bool:
        """A peer says where it is: with its signature, or `first_hand` on a connection of its own. Whether it was new.

        What it says first-hand holds whatever was heard before. If its clock is ahead, its number is lowered to ours,
        so that what it says once its clock is right is the newer.
        """
        entry, now = self._entry(record.peer), self._now()
        if entry is None:
            return False
        known, record = entry.declared, msgspec.structs.replace(record, addresses=_bounded(record.addresses))
        if record.number > latest_number(now):
            if not first_hand:
                return False
            record = msgspec.structs.replace(record, number=int(now * 1000), token="")
        if known is not None:
            same = known.addresses == record.addresses
            if same and (known.number >= record.number or not record.token) and (known.token or not record.token):
                return False
            newer = record.number > known.number or (same and record.number == known.number)
            if not newer and not first_hand:
                return False
        entry.declared = record
        await self._save(record.peer, entry)
        return True

    async def reached(self, peer: PeerId, address: str | None) -> None:
        """The peer is connected; `address` is where we reached it, None when it has called us."""
        entry = self._entry(peer)
        if entry is None:
            return
        entry.last_seen = self._now()
        if address is not None:
            entry.good = list(dict.fromkeys([bare(address), *entry.good]))[:MAX_HINTS]
        await self._save(peer, entry)

    def seen(self, peer: PeerId) -> None:
        """The peer is (or a moment ago was) there."""
        if entry := self._entries.get(peer):
            entry.last_seen = self._now()

    async def forget_all(self) -> None:
        """We have left the fleet: its addresses are nothing to us."""
        for peer in list(self._entries):
            await self._store.drop(KIND, peer)
        self._entries.clear()

    async def save_seen(self) -> None:
        """Write down when peers were last seen, where that has changed much."""
        for peer, entry in list(self._entries.items()):
            if entry.last_seen is not None and entry.last_seen - self._written.get(peer, 0.0) >= SEEN_WRITTEN_EVERY:
                await self._save(peer, entry)

    async def load(self) -> None:
        for peer, packed in (await self._store.load(KIND)).items():
            entry = msgspec.msgpack.decode(packed, type=Entry)
            if entry.declared and entry.declared.number > latest_number(self._now()):
                entry.declared = msgspec.structs.replace(entry.declared, number=0)
            self._entries[peer] = entry

    def _entry(self, peer: PeerId) -> Entry | None:
        if peer not in self._entries and len(self._entries) >= MAX_PEERS:
            return None
        return self._entries.setdefault(peer, Entry())

    async def _save(self, peer: PeerId, entry: Entry) -> None:
        self._written[peer] = entry.last_seen or 0.0
        await self._store.put(KIND, peer, msgspec.msgpack.encode(entry))


def _bounded(addresses: Iterable[str]) -> list[str]:
    return [bare(address) for address in addresses if len(address) <= MAX_LENGTH][:MAX_ADDRESSES]


async def open_address_book(store: KeyValueStore, bootstrap: Iterable[str], now: Callable[[], float]) -> AddressBook:
    """The address book on the store."""
    address_book = AddressBook(store, bootstrap, now)
    await address_book.load()
    return address_book
