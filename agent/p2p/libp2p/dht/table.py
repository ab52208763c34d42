"""Distances, the routing table and one lookup, as pure code: it names the peers to ask next and takes their answers."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .....protocols import base58
from ...addresses import Address
from ...host import PeerId

NEAREST: Final = 20
"""How many peers an answer names, a bucket keeps and a lookup ends with."""
AT_ONCE: Final = 3
MAX_ASKED: Final = 60
MAX_ADDRESSES: Final = 8
_BITS: Final = 256


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer and where it may be."""

    peer_id: PeerId
    addresses: tuple[Address, ...] = ()

    def also_at(self, addresses: Sequence[Address]) -> Contact:
        """What is known already stays in front: who is asked later cannot displace it."""
        return Contact(self.peer_id, tuple(dict.fromkeys((*self.addresses, *addresses)))[:MAX_ADDRESSES])


def place(key: bytes) -> int:
    """Where a key lies."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


@functools.lru_cache(maxsize=4096)
def place_of_peer(peer_id: PeerId) -> int:
    return place(base58.decode(peer_id))


def nearest(contacts: Iterable[Contact], target: int, most: int = NEAREST) -> list[Contact]:
    """The nearest ones first."""
    return sorted(contacts, key=lambda each: place_of_peer(each.peer_id) ^ target)[:most]


class RoutingTable:
    """Peers by distance from us; each bucket keeps those that it met first, for they tend to stay."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._place = place_of_peer(own)
        self._buckets: dict[int, dict[PeerId, Contact]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, contact: Contact) -> bool:
        """Whether there is room for it; what is known of its addresses is replaced by what is new."""
        if contact.peer_id == self._own:
            return False
        bucket = self._buckets.setdefault(self._bucket(contact.peer_id), {})
        known = bucket.get(contact.peer_id)
        if known is None and len(bucket) >= NEAREST:
            return False
        bucket[contact.peer_id] = contact if contact.addresses or known is None else known
        return True

    def remove(self, peer_id: PeerId) -> None:
        self._buckets.get(self._bucket(peer_id), {}).pop(peer_id, None)

    def nearest(self, target: int, most: int = NEAREST) -> list[Contact]:
        return nearest((contact for bucket in self._buckets.values() for contact in bucket.values()), target, most)

    def _bucket(self, peer_id: PeerId) -> int:
        return _BITS - (self._place ^ place_of_peer(peer_id)).bit_length()


class Lookup:
    """Closes in on a target. It ends when the nearest that answer have all been asked, or too many were."""

    def __init__(self, own: PeerId, target: int, seeds: Iterable[Contact]) -> None:
        self._own = own
        self._target = target
        self._known: dict[PeerId, Contact] = {}
        self._asked: set[PeerId] = set()
        self._waiting: set[PeerId] = set()
        self._dead: set[PeerId] = set()
        self._learn(seeds)

    @property
    def found(self) -> list[Contact]:
        """The nearest that have answered."""
        answered = self._asked - self._dead - self._waiting
        return nearest((self._known[peer] for peer in answered), self._target)

    @property
    def over(self) -> bool:
        return not self._waiting and not self._candidates()

    def next(self) -> list[Contact]:
        """Whom to ask now, so that `AT_ONCE` are under way."""
        chosen = self._candidates()[: AT_ONCE - len(self._waiting)]
        for contact in chosen:
            self._asked.add(contact.peer_id)
            self._waiting.add(contact.peer_id)
        return chosen

    def answered(self, peer_id: PeerId, closer: Sequence[Contact]) -> None:
        self._waiting.discard(peer_id)
        self._learn(closer[:NEAREST])

    def failed(self, peer_id: PeerId) -> None:
        self._waiting.discard(peer_id)
        self._dead.add(peer_id)

    def known(self, peer_id: PeerId) -> Contact | None:
        """What was heard of a peer."""
        return self._known.get(peer_id)

    def _learn(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            if contact.peer_id != self._own:
                known = self._known.get(contact.peer_id, contact)
                self._known[contact.peer_id] = known.also_at(contact.addresses)

    def _candidates(self) -> list[Contact]:
        """Those of the nearest that were not asked yet."""
        if len(self._asked) >= MAX_ASKED:
            return []
        alive = (contact for peer, contact in self._known.items() if peer not in self._dead)
        return [contact for contact in nearest(alive, self._target) if contact.peer_id not in self._asked]
