"""Statements in the key-value store, in the rows of the first release: a chain of tokens each, and revocations.

A row repeats the certificates of its issuer, so that the first release can read it. Rows are trusted: what they hold
was verified before it was written.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

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
from .store import KeyValueStore

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

    async def put(self, statement: Statement, chain: Sequence[Statement]) -> None:
        """Store a statement with the chain of its issuer. Raises: InsufficientResources when the disk is full."""
        if statement.id in self._keys:
            return
        tokens = tuple(link.token for link in chain)
        if isinstance(statement.claims, Certificate):
            kind, value = CERTIFICATES, msgspec.msgpack.encode((statement.token, *tokens))
        else:
            signed = SignedRevocation(token=statement.token, chain=tokens)
            kind, value = REVOCATIONS, msgspec.msgpack.encode(signed)
        await self._store.put(kind, statement.id, value)
        self._keys[statement.id] = (kind, statement.id)

    async def drop(self, statement_id: str) -> None:
        """Remove a statement's row."""
        if (row := self._keys.pop(statement_id, None)) is not None:
            await self._store.drop(*row)

    async def clear(self) -> None:
        """Remove all rows."""
        for statement_id in list(self._keys):
            await self.drop(statement_id)


def _trusted(token: str, signer: str) -> bytes:
    payload = token.split(".")[1]
    return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
