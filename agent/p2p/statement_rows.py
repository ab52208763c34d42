"""Statements in the key-value store, in the rows of the first release: a chain of tokens each, and revocations.

A row repeats the certificates of its issuer, so that the first release can read it. Rows are trusted: what they hold
was verified before it was written.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from ...protocols.errors import Forbidden
from ...protocols.membership.statements import (
    Certificate,
    Chain,
    SignedRevocation,
    Statement,
    read_certificate,
    read_revocation,
)
from .store import KeyValueStore, Value

log = structlog.get_logger(__name__)
CERTIFICATES, REVOCATIONS = "member", "revocation"


class StatementRows:
    """The rows of one node's statements."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._keys: dict[str, tuple[str, str]] = {}

    async def load(self) -> list[Statement]:
        """Return all statements, those of a row's chain too."""
        found: dict[str, Statement] = {}
        for key, packed in (await self._store.load(REVOCATIONS)).items():
            signed = msgspec.msgpack.decode(packed, type=SignedRevocation)
            for statement in self._read((signed.token,), key, revocation=True) + self._read(signed.chain, None):
                found[statement.id] = statement
        for key, packed in (await self._store.load(CERTIFICATES)).items():
            for statement in self._read(msgspec.msgpack.decode(packed, type=Chain), key):
                found[statement.id] = statement
        return list(found.values())

    def _read(self, tokens: Sequence[str], key: str | None, *, revocation: bool = False) -> list[Statement]:
        read = read_revocation if revocation else read_certificate
        found = []
        for number, token in enumerate(tokens):
            try:
                statement = read(token, _trusted)
            except Forbidden as error:
                log.warning("stored statement not read", key=key, reason=error.message)
                continue
            found.append(statement)
            if key is not None and number == 0:
                self._keys[statement.id] = (REVOCATIONS if revocation else CERTIFICATES, key)
        return found

    async def put(self, statements: Iterable[tuple[Statement, Sequence[Statement]]]) -> None:
        """Store statements, each with the chain of its issuer, as few durable writes: others wait for the database.

        Raises: InsufficientResources when the disk is full.
        """
        rows = [_row(statement, chain) for statement, chain in statements if statement.id not in self._keys]
        await self._store.put_all(rows)
        self._keys |= {key: (kind, key) for kind, key, _ in rows}

    async def drop(self, statement_ids: Iterable[str]) -> None:
        """Remove the rows of statements."""
        rows = [row for each in statement_ids if (row := self._keys.pop(each, None)) is not None]
        await self._store.drop_all(rows)

    async def clear(self) -> None:
        """Remove all rows."""
        await self.drop(list(self._keys))


def _row(statement: Statement, chain: Sequence[Statement]) -> Value:
    tokens = tuple(link.token for link in chain)
    if isinstance(statement.claims, Certificate):
        return CERTIFICATES, statement.id, msgspec.msgpack.encode((statement.token, *tokens))
    signed = SignedRevocation(token=statement.token, chain=tokens)
    return REVOCATIONS, statement.id, msgspec.msgpack.encode(signed)


def _trusted(token: str, signer: str) -> bytes:
    payload = token.split(".")[1]
    return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
