"""The event stream: what is written is read back, however the bytes are cut."""

from datetime import UTC, datetime

import pytest

from twinshare.protocols.events import Event
from twinshare.protocols.sse import KEEPALIVE, MAX_LINE, EventReader, encode_event, encode_start

EVENTS = [
    Event(id=number, type="vm.state", at=datetime(2025, 5, 10, tzinfo=UTC), data={"name": "line\nend é"})
    for number in range(1, 4)
]
STREAM = KEEPALIVE.join(encode_event(event) for event in EVENTS)


@pytest.mark.parametrize("size", [1, 7, 64, len(STREAM)])
def test_events_survive_any_cut(size: int) -> None:
    reader = EventReader()
    parts = (STREAM[at : at + size] for at in range(0, len(STREAM), size))
    assert [event for part in parts for event in reader.feed(part)] == EVENTS


def test_the_position_is_that_of_whole_events() -> None:
    reader = EventReader()
    assert reader.position is None
    assert list(reader.feed(encode_start(7) + KEEPALIVE)) == []
    assert reader.position == 7
    list(reader.feed(encode_event(EVENTS[0]) + encode_event(EVENTS[1])[:-1]))
    assert reader.position == 1


def test_other_line_ends_and_fields_are_read() -> None:
    assert list(EventReader().feed(b"retry: 5\r\n" + encode_event(EVENTS[0]).replace(b"\n", b"\r\n"))) == EVENTS[:1]


def test_an_endless_line_is_refused() -> None:
    reader = EventReader()
    with pytest.raises(ValueError, match="longer than"):
        list(reader.feed(b"data: " + b"x" * MAX_LINE))


def test_data_that_is_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="missing required field"):
        list(EventReader().feed(b"data: {}\n\n"))
