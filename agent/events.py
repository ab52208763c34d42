"""What happened on this node, for whoever listens: numbered, durable, replayed to those who come back.

An event is written before anybody hears of it, so that a listener's `Last-Event-ID` means the same thing after the
agent was killed. The newest `KEPT` events are kept.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

from ..protocols.events import Event, EventPayload
from .database import PASSING_FAULTS
from .state import State

KEPT = 4096
LISTENER_BUFFER = 1024
WAITING = 8192
HEARTBEAT = 15.0
"""Seconds between two heartbeats."""
HEARTBEAT_EVENT = Event(id=0, type="heartbeat", at=datetime.fromtimestamp(0, UTC))
"""Says that the node lives, to the listeners that ask for it; it is neither numbered nor kept."""


class EventLog:
    """Made by `open_events`."""

    def __init__(self, kept: list[Event]) -> None:
        self._kept: deque[Event] = deque(kept, maxlen=KEPT)
        self._next = (kept[-1].id if kept else 0) + 1
        # Each listener with the number that its events begin at.
        self._listeners: dict[trio.MemorySendChannel[Event], int] = {}
        self._with_heartbeat: set[trio.MemorySendChannel[Event]] = set()
        # Bounded: if the disk stalls, the oldest unwritten events give way rather than the node's memory.
        self._unwritten: deque[Event] = deque(maxlen=WAITING)
        self._wake = trio.Event()

    @property
    def kept(self) -> list[Event]:
        return list(self._kept)

    @property
    def last_id(self) -> int:
        """Return the number of the newest event that was published."""
        return self._kept[-1].id if self._kept else 0

    def publish(self, payload: EventPayload) -> None:
        """Send an event to every listener, as soon as it is written."""
        data = msgspec.to_builtins(payload, builtin_types=(bytes,))
        self._unwritten.append(Event(id=self._next, type=str(payload.event), at=datetime.now(UTC), data=data))
        self._next += 1
        self._wake.set()

    @asynccontextmanager
    async def subscribe(
        self, after: int | None = None, *, heartbeat: bool = False
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """Listen, beginning with what is kept after the number `after`; None begins with the next event.

        With `heartbeat`, `HEARTBEAT_EVENT` comes every `HEARTBEAT` seconds: one clock for all listeners, because a
        timer of each would be set anew at each event, a tenth of what an event to many listeners costs.
        A listener that stops reading is cut off (its channel ends); it comes back with its last number.
        """
        missed = [event for event in self._kept if after is not None and event.id > after]
        send, receive = trio.open_memory_channel[Event](LISTENER_BUFFER + len(missed))
        for event in missed:
            send.send_nowait(event)
        self._listeners[send] = self._next if after is None else after + 1
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
            self._wake = trio.Event()
            await self._flush(state)

    async def _flush(self, state: State) -> None:
        batch = list(self._unwritten)
        if not batch:
            return
        rows = [(event.id, msgspec.msgpack.encode(event)) for event in batch]

        def write(db: Any) -> None:
            db.executemany("INSERT OR REPLACE INTO events VALUES (?, ?)", rows)
            db.execute("DELETE FROM events WHERE id <= ?", (batch[-1].id - KEPT,))

        # A full disk must not silence the event that tells of the full disk: listeners hear it all the same.
        with contextlib.suppress(*PASSING_FAULTS):
            await state.transact(write)
        for event in batch:
            if self._unwritten and self._unwritten[0] is event:
                self._unwritten.popleft()
            self._tell(event)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            for listener in self._with_heartbeat & self._listeners.keys():
                self._send(listener, HEARTBEAT_EVENT)

    def _tell(self, event: Event) -> None:
        self._kept.append(event)
        for listener, first in list(self._listeners.items()):
            if event.id >= first:
                self._send(listener, event)

    def _send(self, listener: trio.MemorySendChannel[Event], event: Event) -> None:
        """Send without waiting; a listener that is full is cut off."""
        try:
            listener.send_nowait(event)
        except (trio.WouldBlock, trio.BrokenResourceError):
            del self._listeners[listener]
            listener.close()


@asynccontextmanager
async def open_events(state: State) -> AsyncIterator[EventLog]:
    """The node's event log; what is unwritten at the end is written."""
    rows = await state.query("SELECT event FROM events ORDER BY id DESC LIMIT ?", (KEPT,))
    log = EventLog([msgspec.msgpack.decode(row[0], type=Event) for row in reversed(rows)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log._write, state)
        nursery.start_soon(log._beat)
        try:
            yield log
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(2, shield=True):
                await log._flush(state)
