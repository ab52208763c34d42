"""Server-sent events: how `GET /api/events` writes an `Event`, and how a client reads it back. Bytes in, events out."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .event import Event

MAX_LINE = 1 << 20
KEEPALIVE = b":\n\n"
_decoder = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """One event: `id` and `event` for any SSE reader, and the whole `Event` as its data."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.type.encode(), msgspec.json.encode(event))


class EventReader:
    """Takes the stream's bytes as they come and gives whole events.

    `feed` raises ValueError on what no server of ours writes: an endless line, or data that is no `Event`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise ValueError(f"a line of the event stream is longer than {MAX_LINE} bytes")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not field and not value and self._data and not line.startswith(b":"):
                text, self._data = b"\n".join(self._data), []
                yield _decoder.decode(text)
