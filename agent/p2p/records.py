"""Peer records: the addresses of a peer, signed by itself and numbered, for gossip and for the DHT.

A record's key in the DHT holds the peer ID, and so the key that must have signed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ...protocols.membership.rules import SKEW
from ...protocols.mesh import MAX_ADDRESSES, PeerRecord
from .host import PeerId
from .signing import Signer, open_token
from .store import KeyValueStore

_PREFIX: Final = "/twinshare/"
MAX_RECORD: Final = 4096
KIND: Final = "record"


def latest_number(now: float) -> int:
    """Return the highest number of a record that is taken at a time, in seconds of the epoch."""
    return int((now + SKEW) * 1000)


class OwnRecord:
    """This node's record. Its number grows with every change of the addresses, also over restarts.

    It is `max(stored + 1, now)` in milliseconds of the epoch. A stored one that nobody would take, because this clock
    was far ahead when it was made, counts as none.
    """

    def __init__(self, signer: Signer, store: KeyValueStore, now: Callable[[], float], number: int) -> None:
        self._signer, self._store, self._now = signer, store, now
        self._record = PeerRecord(peer=signer.peer_id, addresses=[], number=number)
        self._saved = number

    def current(self, addresses: Sequence[str]) -> PeerRecord:
        """Return the record with these addresses, unsigned: for a peer that has proved our connection."""
        wanted = list(addresses)[:MAX_ADDRESSES]
        if wanted != self._record.addresses:
            stored = self._record.number if self._record.number <= latest_number(self._now()) else 0
            number = max(stored + 1, int(self._now() * 1000))
            self._record = PeerRecord(peer=self._signer.peer_id, addresses=wanted, number=number)
        return self._record

    def signed(self, addresses: Sequence[str]) -> PeerRecord:
        """Return the record for others to pass on."""
        record = self.current(addresses)
        if not record.token:
            self._record = msgspec.structs.replace(record, token=make_record(self._signer, record).decode())
        return self._record

    async def save(self) -> None:
        """Store the number, if it has changed. Raises: InsufficientResources when the disk is full."""
        if (number := self._record.number) != self._saved:
            self._saved = number
            await self._store.put(KIND, "number", str(number).encode())


async def open_own_record(signer: Signer, store: KeyValueStore, now: Callable[[], float]) -> OwnRecord:
    """Read the number of the last record from the store."""
    return OwnRecord(signer, store, now, int((await store.load(KIND)).get("number", b"0")))


def record_key(peer_id: PeerId) -> bytes:
    """Return the key of a peer's record in the DHT."""
    return f"{_PREFIX}{peer_id}".encode()


def make_record(signer: Signer, record: PeerRecord) -> bytes:
    """Sign a record: the value under `record_key(signer.peer_id)`."""
    return signer.sign(msgspec.msgpack.encode(msgspec.structs.replace(record, token=""))).encode()


def read_record(key: bytes, value: bytes) -> PeerRecord:
    """Return a record with its signature. Raises: ValueError when it is not the peer's own word about itself."""
    name = key.decode()
    if len(value) > MAX_RECORD or not name.startswith(_PREFIX):
        raise ValueError("no record of a peer")
    peer_id = name.removeprefix(_PREFIX)
    token = value.decode()
    try:
        record = msgspec.msgpack.decode(open_token(token, peer_id), type=PeerRecord)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no record of a peer: {error}") from error
    if record.peer != peer_id:
        raise ValueError(f"{peer_id} speaks about {record.peer}")
    return msgspec.structs.replace(record, token=token)


def verified(record: PeerRecord) -> PeerRecord | None:
    """Return what the subject of a record has signed, None if it has not."""
    try:
        return read_record(record_key(record.peer), record.token.encode())
    except ValueError:
        return None


def number_of(key: bytes, value: bytes, now: float) -> int | None:
    """Return the number of a record, None for what is none or is dated ahead: the validator of the DHT."""
    try:
        number = read_record(key, value).number
    except ValueError:
        return None
    return number if number <= latest_number(now) else None
