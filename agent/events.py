"""What happened on this node, for whoever listens: numbered, durable, replayed to those who come back.

An event is written before anybody hears of it, so that a listener's `Last-Event-ID` means the same thing after the
agent was killed. The newest events of each account are kept, within its share.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from math import inf
from typing import NamedTuple

import msgspec
import trio

from ..protocols.access import LOCAL, account_of
from ..protocols.events import Event, EventPayload, reset_event
from .database import PASSING_FAULTS
from .event_shares import KeptEvents, memory_of
from .limits import limits_of
from .state import State

LISTENER_BUFFER = 1024
MAX_UNREAD = 8 << 20
"""Events, and bytes of memory, that a listener may leave unread."""
OTHERS_EVERY = 0.1
"""Seconds between two writes at least, where none is of the node's own user: those of others come in greater number."""
HEARTBEAT = 15.0
"""Seconds between two heartbeats."""
HEARTBEAT_EVENT = Event(id=0, type="heartbeat", at=datetime.fromtimestamp(0, UTC))
"""Says that the node lives, to the listeners that ask for it; it is neither numbered nor kept."""


_LOAD = "SELECT event, account FROM events LEFT JOIN event_accounts USING (id) ORDER BY id"


class _Waiting(NamedTuple):
    """An event that is to be written, packed; `size` is in memory."""

    event: Event
    account: str
    packed: bytes
    size: int


class _Unread:
    """What a listener has not read: its events begin at the number `first`."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._sizes: deque[int] = deque()
        self._size = 0

    def add(self, size: int, unread: int) -> bool:
        """Add an event to the `unread` ones before it; return whether the listener lags too far behind."""
        while len(self._sizes) > unread:
            self._size -= self._sizes.popleft()
        self._sizes.append(size)
        self._size += size
        return self._size > MAX_UNREAD


class EventLog:
    """Made by `open_events`."""

    def __init__(self) -> None:
        self._kept = KeptEvents()
        self._dropped: list[int] = []
        self._next = 1
        self._listeners: dict[trio.MemorySendChannel[Event], _Unread] = {}
        self._with_heartbeat: set[trio.MemorySendChannel[Event]] = set()
        # Bounded for each account: if the disk stalls, its newer events give way rather than the node's memory.
        self._unwritten: deque[_Waiting] = deque()
        self._waiting: Counter[str] = Counter()
        self._wake, self._hurry = trio.Event(), trio.Event()
        self._written_at = -inf

    @property
    def kept(self) -> list[Event]:
        return list(self._kept)

    @property
    def last_id(self) -> int:
        """Return the number of the newest event that was published."""
        return self._kept.last_id

    def publish(self, payload: EventPayload, principal: str = LOCAL) -> None:
        """Send an event to every listener, as soon as it is written. `principal` is whose doing it is."""
        account = account_of(principal)
        if self._waiting[account] >= 2 * limits_of(account).event_log.rows:
            return
        data = msgspec.to_builtins(payload, builtin_types=(bytes,))
        event = Event(id=self._next, type=str(payload.event), at=datetime.now(UTC), data=data)
        packed = msgspec.msgpack.encode(event)
        self._unwritten.append(_Waiting(event, account, packed, memory_of(event, packed)))
        self._waiting[account] += 1
        self._next += 1
        self._wake.set()
        if account == LOCAL:
            self._hurry.set()

    def load(self, event: Event, account: str, size: int) -> None:
        """Take an event of a former life of the node."""
        self._dropped += self._kept.add(event, account, size)
        self._next = event.id + 1

    @asynccontextmanager
    async def subscribe(
        self, after: int | None = None, *, heartbeat: bool = False
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """Listen, beginning with what is kept after the number `after`; None begins with the next event.

        A number beyond the newest event is of a log that was lost: the first event says so, `reset`. So it does
        where some of the events after `after` are not kept any more: numbers have no gaps but those.
        With `heartbeat`, `HEARTBEAT_EVENT` comes every `HEARTBEAT` seconds: one clock for all listeners, because a
        timer of each would be set anew at each event, a tenth of what an event to many listeners costs.
        A listener that stops reading is cut off (its channel ends); it comes back with its last number.
        """
        missed = self._kept.after(after) if after is not None else []
        if after is not None and after >= self._next:
            missed, after = [reset_event(self.last_id, datetime.now(UTC))], self.last_id
        elif after is not None and len(missed) < self.last_id - after:
            missed = [reset_event(after, datetime.now(UTC)), *missed]
        send, receive = trio.open_memory_channel[Event](LISTENER_BUFFER + len(missed))
        for event in missed:
            send.send_nowait(event)
        self._listeners[send] = _Unread(self._next if after is None else after + 1)
        if heartbeat:
            self._with_heartbeat.add(send)
        try:
            yield receive
        finally:
            self._listeners.pop(send, None)
            self._with_heartbeat.discard(send)
            send.close()
            receive.close()

    async def _write(self, state: State) -> None:
        while True:
            await self._wake.wait()
            with trio.move_on_at(self._written_at + OTHERS_EVERY):
                await self._hurry.wait()
            self._wake, self._hurry = trio.Event(), trio.Event()
            await self._flush(state)
            self._written_at = trio.current_time()

    async def _flush(self, state: State) -> None:
        batch = list(self._unwritten)
        if not batch:
            return
        dropped = [(number,) for number in self._dropped]

        def write(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO events VALUES (?, ?)", [(each.event.id, each.packed) for each in batch]
            )
            accounts = [(each.event.id, each.account) for each in batch if each.account != LOCAL]
            db.executemany("INSERT OR REPLACE INTO event_accounts VALUES (?, ?)", accounts)
            for table in ("events", "event_accounts"):
                db.executemany(f"DELETE FROM {table} WHERE id = ?", dropped)  # noqa: S608 - of two constants

        # A full disk must not silence the event that tells of the full disk: listeners hear it all the same.
        with contextlib.suppress(*PASSING_FAULTS):
            await state.transact(write)
            del self._dropped[: len(dropped)]
        for waiting in batch:
            if not self._unwritten or self._unwritten[0] is not waiting:
                continue  # announced by the flush at the end of the node
            event, account, _, size = self._unwritten.popleft()
            self._waiting[account] -= 1
            self._dropped += self._kept.add(event, account, size)
            self._announce(event, size)
        self._waiting = +self._waiting

    async def _beat(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            for listener in self._with_heartbeat & self._listeners.keys():
                self._send(listener, HEARTBEAT_EVENT)

    def _announce(self, event: Event, size: int) -> None:
        for listener, unread in list(self._listeners.items()):
            if event.id >= unread.first:
                self._send(listener, event, size)

    def _send(self, listener: trio.MemorySendChannel[Event], event: Event, size: int = 0) -> None:
        """Send without waiting; a listener that is full is cut off."""
        full = self._listeners[listener].add(size, listener.statistics().current_buffer_used)
        try:
            if not full:
                listener.send_nowait(event)
                return
        except (trio.WouldBlock, trio.BrokenResourceError):
            pass
        del self._listeners[listener]
        listener.close()


@asynccontextmanager
async def open_events(state: State) -> AsyncIterator[EventLog]:
    """The node's event log; what is unwritten at the end is written."""
    log = EventLog()
    for packed, account in await state.query(_LOAD):
        event = msgspec.msgpack.decode(packed, type=Event)
        log.load(event, account or LOCAL, memory_of(event, packed))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log._write, state)
        nursery.start_soon(log._beat)
        try:
            yield log
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(2, shield=True):
                await log._flush(state)
