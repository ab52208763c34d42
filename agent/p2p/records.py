"""Where a peer says it is, signed by itself: what may be kept where anybody can read and nobody can change it.

A record's key holds the peer ID, and so the key that must have signed it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ...protocols.mesh import PeerRecord
from .host import PeerId
from .signing import Signer, open_token

_PREFIX: Final = "/twinshare/"
MAX_RECORD: Final = 4096


def record_key(peer_id: PeerId) -> bytes:
    return f"{_PREFIX}{peer_id}".encode()


def make_record(signer: Signer, record: PeerRecord) -> bytes:
    """The value to keep under `record_key(signer.peer_id)`."""
    return signer.sign(msgspec.msgpack.encode(record)).encode()


def read_record(key: bytes, value: bytes) -> PeerRecord:
    """Raises: ValueError when it is not the peer's own word about itself."""
    name = key.decode()
    if len(value) > MAX_RECORD or not name.startswith(_PREFIX):
        raise ValueError("no record of a peer")
    peer_id = name.removeprefix(_PREFIX)
    try:
        record = msgspec.msgpack.decode(open_token(value.decode(), peer_id), type=PeerRecord)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no record of a peer: {error}") from error
    if record.peer != peer_id:
        raise ValueError(f"{peer_id} speaks about {record.peer}")
    return record


def number_of(key: bytes, value: bytes) -> int | None:
    """The number of a record, None for what is none: the validator of the table."""
    try:
        return read_record(key, value).number
    except ValueError:
        return None
