"""The node's audit log: each change that somebody asks for is a row before it begins, and a row with its outcome.

The row of a beginning is durable before anything is done, so nothing happens without one. An outcome is written behind
the answer; when the agent is killed in between, the log has a beginning without an end, which is what happened.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import structlog
import trio

from ...protocols.access import LOCAL, Caller, account_of
from ...protocols.errors import TwinshareError
from ...protocols.operation import Detached, Operation
from ..database import PASSING_FAULTS
from ..limits import limits_of
from ..state import State
from .chain import BEGINNING, ChainEntry, Entry, Pen
from .gaps import convert_floor, drop_older_half

log = structlog.get_logger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY, hash BLOB NOT NULL, content BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_ends (
    name TEXT PRIMARY KEY, number INTEGER NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL, size INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_accounts (
    account TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (account, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit_gaps (
    before INTEGER PRIMARY KEY, before_hash BLOB NOT NULL, last INTEGER NOT NULL, last_hash BLOB NOT NULL,
    signature BLOB NOT NULL
) STRICT;
"""
_ENDS = "SELECT name, number, hash FROM audit_ends"
_NEWEST = "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1"
_SHARES = """
SELECT account, count(*), sum(length(content)) FROM audit_accounts JOIN audit USING (number) GROUP BY account
"""
MAX_WAITING = 10_000
"""Rows of the node's own user that wait in memory while the disk is full; each other account has a tenth."""
MAX_WAITING_SIZE = 32 << 20
"""Their bytes."""
MAX_BATCH = 256
"""Rows that are signed and written together."""
LATER = 0.1
"""Seconds in which a row is written that nothing depends on: the end of a call, and all of one that is refused."""


class AuditLog:
    """Made by `open_audit`. `last` is the newest row, `shares` tells how many rows and bytes each account has."""

    def __init__(self, state: State, pen: Pen, last: ChainEntry, shares: dict[str, tuple[int, int]]) -> None:
        self._state, self._pen = state, pen
        self._last, self._shares = last, shares
        self._waiting: list[tuple[str, bytes, trio.Event]] = []
        self._waiting_rows: Counter[str] = Counter()
        self._waiting_size: Counter[str] = Counter()
        self._wake, self._hurry = trio.Event(), trio.Event()

    @asynccontextmanager
    async def record(
        self,
        caller: Caller,
        what: str,
        on: str = "",
        *,
        at_peer: str = "",
        request: bytes = b"",
        will_be_refused: bool = False,
    ) -> AsyncIterator[None]:
        """One call by `caller`, as `Entry` has it. What the block raises is its outcome.

        The rows of calls that will be refused are written together: no refusal makes others wait for the disk.
        A full disk keeps nobody from what makes room: the rows then wait in memory.
        """
        begun = Entry(
            at=time.time(), call=secrets.token_hex(8), principal=caller.principal, what=what, on=on,
            at_peer=at_peer, request=request,
        )  # fmt: skip
        outcome = TwinshareError.code  # of a bug
        try:
            await self.note(begun, later=will_be_refused).wait()
            yield
            outcome = "done"
        except trio.Cancelled:
            outcome = "interrupted"
            raise
        except TwinshareError as error:
            outcome = error.code
            raise
        except Detached as detached:
            outcome = f"operation {detached.operation.id}"
            raise
        finally:
            self.note(msgspec.structs.replace(begun, at=time.time(), outcome=outcome, request=b""), later=True)

    def note(self, entry: Entry, *, later: bool = False) -> trio.Event:
        """Write a row now, or with the next ones within `LATER`; the event is set when that was tried."""
        tried = trio.Event()
        account, content = account_of(entry.principal), msgspec.msgpack.encode(entry)
        part = 1 if account == LOCAL else 10
        if (
            self._waiting_rows[account] < MAX_WAITING // part
            and self._waiting_size[account] + len(content) <= MAX_WAITING_SIZE // part
        ):
            self._waiting.append((account, content, tried))
            self._waiting_rows[account] += 1
            self._waiting_size[account] += len(content)
            self._wake.set()
            if not later:
                self._hurry.set()
        else:
            log.error("the audit log cannot be written; a row is lost", what=entry.what, principal=entry.principal)
            tried.set()
        return tried

    def operation_ended(self, operation: Operation) -> None:
        """A row for the end of an operation; its call may have ended before, or was made in a former life."""
        outcome = operation.error.code if operation.error else str(operation.state)
        self.note(
            Entry(
                at=time.time(), call=operation.id, principal=operation.principal, what=operation.kind,
                on=operation.target, outcome=outcome,
            ),
            later=True,
        )  # fmt: skip

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            with trio.move_on_after(LATER):
                await self._hurry.wait()
            self._wake, self._hurry = trio.Event(), trio.Event()
            await self._flush()

    async def _flush(self) -> None:
        waiting = list(self._waiting)
        batch = waiting[:MAX_BATCH]
        if not batch:
            return

        def write(db: sqlite3.Connection) -> ChainEntry:
            rows = list(self._pen.rows(self._last, [content for _, content, _ in batch]))
            db.executemany(
                "INSERT INTO audit VALUES (?, ?, ?, ?)",
                [(row.link.number, row.link.hash, row.content, row.signature) for row in rows],
            )
            accounts = [(account, row.link.number) for (account, _, _), row in zip(batch, rows, strict=True)]
            db.executemany("INSERT INTO audit_accounts VALUES (?, ?)", accounts)
            head = self._pen.head(rows[-1].link)
            db.execute(
                "INSERT OR REPLACE INTO audit_ends VALUES ('head', ?, ?, ?, 0)",
                (head.link.number, head.link.hash, head.signature),
            )
            return head.link

        try:
            self._last = await self._state.transact(write)
        except PASSING_FAULTS as error:
            log.warning("the audit log waits until the database can be written", rows=len(waiting), error=error.message)
            batch = waiting
        else:
            del self._waiting[: len(batch)]
            await self._count(batch)
            if self._waiting:
                self._wake.set()
                self._hurry.set()
        for _, _, tried in batch:
            tried.set()

    async def _count(self, written: Collection[tuple[str, bytes, trio.Event]]) -> None:
        for account, content, _ in written:
            self._waiting_rows[account] -= 1
            self._waiting_size[account] -= len(content)
            count, size = self._shares.get(account, (0, 0))
            self._shares[account] = count + 1, size + len(content)
        self._waiting_rows, self._waiting_size = +self._waiting_rows, +self._waiting_size
        for account in {account for account, _, _ in written}:
            await self._keep_bounds(account)

    async def _flush_all(self) -> None:
        """Write all that waits, as far as it can be written."""
        left = len(self._waiting) + 1
        while len(self._waiting) < left:
            left = len(self._waiting)
            await self._flush()

    async def _keep_bounds(self, account: str) -> None:
        """Drop the older half of an account's rows when it has too much; nobody else's are touched."""
        (count, size), share = self._shares[account], limits_of(account).audit_log
        if count > share.rows or size > share.size:
            with suppress(*PASSING_FAULTS):  # the next row tries again
                self._shares[account] = await self._state.transact(partial(drop_older_half, self._pen, account))


@asynccontextmanager
async def open_audit(state: State, seed: bytes) -> AsyncIterator[AuditLog]:
    """The log of the node whose identity has `seed`; what is unwritten at the end is written."""
    ends = {name: ChainEntry(number, hash) for name, number, hash in await state.query(_ENDS)}
    head = ends.get("head", BEGINNING)
    newest = next((ChainEntry(number, hash) for number, hash in await state.query(_NEWEST)), BEGINNING)
    if newest != head:
        log.error("the audit log is not what this node has written; see `twinshare audit verify`")
        head = ChainEntry(
            max(newest.number, head.number) + 1, bytes(32)
        )  # the gap stays, whatever is written behind it
    if floor := ends.get("floor"):
        await state.transact(partial(convert_floor, Pen(seed), floor))
    shares = {account: (count, size) for account, count, size in await state.query(_SHARES)}
    audit = AuditLog(state, Pen(seed), head, shares)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(audit._write)
            try:
                yield audit
            finally:
                nursery.cancel_scope.cancel()
    finally:  # when the writer has ended, which may be in the middle of a batch
        with trio.move_on_after(2, shield=True):
            await audit._flush_all()
