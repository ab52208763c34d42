"""The chain of the audit log: every row carries the hash of the one before it and this node's signature.

Pure: rows and keys in, rows and findings out. A row cannot be changed, left out, added or moved without breaking a hash
or a signature. The head, signed with its number, shows that no row was cut from the end; a gap, signed too, stands for
rows that the node itself dropped for their age.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...protocols.base58 import public_key_of

_ROW, _HEAD, _GAP = b"twinshare audit row\0", b"twinshare audit end\0head", b"twinshare audit gap\0"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one row says.

    `at` is in seconds of the epoch. `call` is the same in the row that a call begins with, which has no `outcome`, and
    in the one with its outcome: `done`, the code of an error, `interrupted` when nobody waited for it any more, or
    `operation ID` when it goes on as that operation, whose own end is a row with that ID as its `call`. `principal` is
    the caller: `local`, `token:NAME`, `oidc:SUBJECT` or a peer ID. `what` is the operation, `on` the name or ID that it
    is about, `at_peer` the peer that was asked to do it, `request` the packed arguments as a peer sent them.
    """

    at: float
    call: str
    principal: str
    what: str
    on: str = ""
    outcome: str = ""
    at_peer: str = ""
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """The place of a row in the chain; number 0 stands before the first one."""

    number: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is kept: `content` is a packed `Entry`."""

    link: ChainEntry
    content: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The signed last row of a chain."""

    link: ChainEntry
    signature: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Signed: the rows after `before` up to and including `last` were dropped by the node itself."""

    before: ChainEntry
    last: ChainEntry
    signature: bytes


BEGINNING = ChainEntry(0, bytes(32))


class Broken(Exception):
    """The chain is not what this node has written; the message says where."""


class Pen:
    """Writes a node's chain. `seed` is the secret of its identity."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def rows(self, after: ChainEntry, contents: Iterable[bytes]) -> Iterator[Row]:
        for content in contents:
            after = ChainEntry(after.number + 1, _hash(after, content))
            yield Row(after, content, self._key.sign(_ROW + after.hash))

    def head(self, link: ChainEntry) -> Head:
        return Head(link, self._key.sign(_of_head(link)))

    def gap(self, before: ChainEntry, last: ChainEntry) -> Gap:
        return Gap(before, last, self._key.sign(_of_gap(before, last)))


def check(rows: Iterable[Row], peer_id: str, head: Head | None, gaps: Iterable[Gap] = ()) -> ChainEntry:
    """Follow the whole chain of the node `peer_id` and return its last row. Raises: Broken."""
    key = Ed25519PublicKey.from_public_bytes(public_key_of(peer_id))
    if head is not None and not _signed(key, head.signature, _of_head(head.link)):
        raise Broken("the head was not signed by this node")
    dropped = {gap.before: gap for gap in gaps}
    last = _over(BEGINNING, dropped, key)
    for row in rows:
        number = row.link.number
        if number != last.number + 1:
            raise Broken(f"row {last.number + 1} is missing: row {number} comes after row {last.number}")
        if row.link.hash != _hash(last, row.content):
            raise Broken(f"row {number} was changed, or is not in its place")
        if not _signed(key, row.signature, _ROW + row.link.hash):
            raise Broken(f"row {number} was not signed by this node")
        last = _over(row.link, dropped, key)
    if last != (head.link if head else BEGINNING):
        wanted = head.link.number if head else 0
        raise Broken(f"the log ends with row {last.number}, and should with row {wanted}")
    return last


def _over(entry: ChainEntry, gaps: Mapping[ChainEntry, Gap], key: Ed25519PublicKey) -> ChainEntry:
    """The row that the next one follows: the last of a gap, if one begins after `entry`."""
    gap = gaps.get(entry)
    if gap is None:
        return entry
    if gap.last.number <= entry.number or not _signed(key, gap.signature, _of_gap(gap.before, gap.last)):
        raise Broken(f"the gap after row {entry.number} was not signed by this node")
    return gap.last


def _hash(former: ChainEntry, content: bytes) -> bytes:
    return hashlib.sha256(former.hash + (former.number + 1).to_bytes(8, "big") + content).digest()


def _of_head(link: ChainEntry) -> bytes:
    return _HEAD + link.number.to_bytes(8, "big") + link.hash


def _of_gap(before: ChainEntry, last: ChainEntry) -> bytes:
    return _GAP + b"".join(entry.number.to_bytes(8, "big") + entry.hash for entry in (before, last))


def _signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
