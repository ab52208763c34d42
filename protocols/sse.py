"""Server-sent events: how `GET /api/events` writes an `Event`, and how a client reads it back. Bytes in, events out."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .events import Event

MAX_LINE = 1 << 20
KEEPALIVE = b":\n\n"
_decoder = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """One event: `id` and `event` for any SSE reader, and the whole `Event` as its data."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.type.encode(), msgspec.json.encode(event))


def encode_start(position: int) -> bytes:
    """What a stream begins with: the id after which it tells, for a reader that loses it before the first event."""
    return b"id: %d\nretry: 2000\n\n" % position


class EventReader:
    """Takes the stream's bytes as they come and gives whole events.

    `position` is the last id that was read, None before the first. `feed` raises ValueError on what no server of ours
    writes: an endless line, or data that is no `Event`.
    """

    def __init__(self) -> None:
        self.position: int | None = None
        self._rest = b""
        self._id: int | None = None
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise ValueError(f"a line of the event stream is longer than {MAX_LINE} bytes")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._data.append(value)
            elif field == b"id" and value.isdigit():
                self._id = int(value)
            elif line in {b"", b"\r"}:
                yield from self._dispatch()

    def _dispatch(self) -> Iterator[Event]:
        """An empty line: what came before it is whole."""
        text, self._data = b"\n".join(self._data), []
        self.position = self._id
        if text:
            yield _decoder.decode(text)
