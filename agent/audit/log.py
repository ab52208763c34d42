"""The node's audit log: each change that somebody asks for is a row before it begins, and a row with its outcome.

The row of a beginning is durable before anything is done, so nothing happens without one. An outcome is written behind
the answer; when the agent is killed in between, the log has a beginning without an end, which is what happened.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog
import trio

from ...protocols.access import Caller
from ...protocols.errors import InsufficientResources, TwinshareError
from ...protocols.operation import Detached, Operation
from ..state import State
from .chain import BEGINNING, End, Entry, Link, Pen

log = structlog.get_logger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY, hash BLOB NOT NULL, content BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_ends (
    name TEXT PRIMARY KEY, number INTEGER NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL, size INTEGER NOT NULL
) STRICT;
"""
_ENDS = "SELECT name, number, hash, size FROM audit_ends"
_NEWEST = "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1"
MAX_ROWS = 100_000
MAX_BYTES = 256 << 20
"""Of all rows. At either limit the older half gives way."""
MAX_WAITING = 10_000
"""Rows that wait in memory while the disk is full."""


class AuditLog:
    """Made by `open_audit`. `last` and `floor` bound the rows that are kept, `size` is theirs in bytes."""

    def __init__(self, state: State, pen: Pen, last: Link, floor: Link, size: int) -> None:
        self._state, self._pen = state, pen
        self._last, self._floor, self._size = last, floor, size
        self._waiting: list[tuple[bytes, trio.Event]] = []
        self._wake = trio.Event()

    @asynccontextmanager
    async def witness(
        self, caller: Caller, what: str, on: str = "", *, at_peer: str = "", request: bytes = b""
    ) -> AsyncIterator[None]:
        """One call by `caller`, as `Entry` has it. What the block raises is its outcome.

        A full disk keeps nobody from what makes room: the rows then wait in memory.
        """
        begun = Entry(
            at=time.time(), call=secrets.token_hex(8), principal=caller.principal, what=what, on=on,
            at_peer=at_peer, request=request,
        )  # fmt: skip
        outcome = TwinshareError.code  # of a bug
        try:
            await self.note(begun).wait()
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
            self.note(msgspec.structs.replace(begun, at=time.time(), outcome=outcome, request=b""))

    def note(self, entry: Entry) -> trio.Event:
        """Write a row soon; the event is set when that was tried."""
        tried = trio.Event()
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append((msgspec.msgpack.encode(entry), tried))
            self._wake.set()
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
            )
        )  # fmt: skip

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._flush()

    async def _flush(self) -> None:
        batch = list(self._waiting)
        rows = list(self._pen.rows(self._last, [content for content, _ in batch]))
        if not rows:
            return
        last, size = rows[-1].link, self._size + sum(len(content) for content, _ in batch)

        def write(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO audit VALUES (?, ?, ?, ?)",
                [(row.link.number, row.link.hash, row.content, row.signature) for row in rows],
            )
            _put_end(db, "head", self._pen.end("head", last), size)

        try:
            await self._state.transact(write)
        except InsufficientResources as error:
            log.warning("the audit log waits for room on the disk", rows=len(rows), error=error.message)
        else:
            del self._waiting[: len(batch)]
            self._last, self._size = last, size
            await self._keep_bounds()
        for _, tried in batch:
            tried.set()

    async def _keep_bounds(self) -> None:
        """Drop the older half when there is too much."""
        kept = self._last.number - self._floor.number
        if kept <= MAX_ROWS and self._size <= MAX_BYTES:
            return
        cut = self._last.number - kept // 2

        def drop(db: sqlite3.Connection) -> tuple[Link, int]:
            floor = Link(cut, db.execute("SELECT hash FROM audit WHERE number = ?", (cut,)).fetchone()[0])
            freed = db.execute("SELECT sum(length(content)) FROM audit WHERE number <= ?", (cut,)).fetchone()[0]
            db.execute("DELETE FROM audit WHERE number <= ?", (cut,))
            _put_end(db, "floor", self._pen.end("floor", floor), 0)
            _put_end(db, "head", self._pen.end("head", self._last), self._size - freed)
            return floor, self._size - freed

        with suppress(InsufficientResources):  # the next row tries again
            self._floor, self._size = await self._state.transact(drop)


def _put_end(db: sqlite3.Connection, name: str, end: End, size: int) -> None:
    row = (name, end.link.number, end.link.hash, end.signature, size)
    db.execute("INSERT OR REPLACE INTO audit_ends VALUES (?, ?, ?, ?, ?)", row)


@asynccontextmanager
async def open_audit(state: State, seed: bytes) -> AsyncIterator[AuditLog]:
    """The log of the node whose identity has `seed`; what is unwritten at the end is written."""
    ends = {name: (Link(number, hash), size) for name, number, hash, size in await state.query(_ENDS)}
    head, size = ends.get("head", (BEGINNING, 0))
    newest = next((Link(number, hash) for number, hash in await state.query(_NEWEST)), BEGINNING)
    if newest != head:
        log.error("the audit log is not what this node has written; see `twinshare audit verify`")
        head = Link(max(newest.number, head.number) + 1, bytes(32))  # the gap stays, whatever is written behind it
    audit = AuditLog(state, Pen(seed), head, ends.get("floor", (BEGINNING, 0))[0], size)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(audit._write)
            try:
                yield audit
            finally:
                nursery.cancel_scope.cancel()
    finally:  # when the writer has ended, which may be in the middle of a batch
        with trio.move_on_after(2, shield=True):
            await audit._flush()
