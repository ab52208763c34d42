"""Bulk does not delay what is urgent: the order of the outbox, and how much of bulk may be under way."""

from __future__ import annotations

from twinshare.agent.p2p.libp2p.pacing import FIRST, INTERVAL, MOST, QUEUED, STALE, BulkPacer, PathState
from twinshare.agent.p2p.libp2p.yamux.frame import DATA, PING, WINDOW, encode
from twinshare.agent.p2p.libp2p.yamux.outbox import HIGH_WATER, QUANTUM, Outbox

MSS = 1448


def frame(stream: int, data: bytes) -> bytes:
    return encode(DATA, 0, stream, len(data)) + data


def test_a_short_message_goes_before_bulk_that_waits() -> None:
    outbox = Outbox()
    outbox.put_data(1, b"b" * 60_000)
    assert outbox.take(0) == frame(1, b"b" * QUANTUM), "of a new stream the beginning is short"
    outbox.put_data(3, b"call")
    outbox.put(encode(PING, 0, 0, 7))
    assert outbox.urgent
    assert outbox.take(0) == encode(PING, 0, 0, 7) + frame(3, b"call")
    assert not outbox.urgent
    assert outbox.take(1000) == frame(1, b"b" * 1000)
    assert outbox.take() == frame(1, b"b" * (60_000 - QUANTUM - 1000))
    assert outbox.size == 0


def test_bulk_of_several_streams_goes_in_turns_and_its_end_last() -> None:
    outbox = Outbox()
    for stream in (1, 3):
        outbox.put_data(stream, bytes(QUANTUM + 100_000))
        outbox.put_end(stream, encode(WINDOW, 4, stream, 0))
    outbox.take(0)
    parts = []
    while outbox.size:
        parts.append(outbox.take(65_507))
    assert [int.from_bytes(part[4:8], "big") for part in parts] == [1, 3, 1, 3]
    assert encode(WINDOW, 4, 1, 0) in parts[2]
    assert parts[3].endswith(encode(WINDOW, 4, 3, 0))


def test_a_full_outbox_takes_a_short_message_of_another_stream_and_no_more_of_the_same() -> None:
    outbox = Outbox()
    outbox.put_data(1, bytes(HIGH_WATER))
    assert outbox.room(1) == 0
    assert outbox.room(3) == QUANTUM
    outbox.put_data(3, b"x")
    assert outbox.room(3) == 0
    outbox.drop(1)
    assert outbox.take() == frame(3, b"x")
    assert outbox.size == 0


class SlowPath:
    """A line of `rate` bytes a second behind a queue without an end, and a sender that writes what it may."""

    def __init__(self, rate: float, shortest: float, segment: int = MSS) -> None:
        self.rate, self.shortest, self.segment, self.now = rate, shortest, segment, 10.0
        self.under_way, self.acknowledged = 0.0, 0
        self.pacer = BulkPacer()
        self.waits: list[float] = []

    def run(self, seconds: float, step: float = 0.001) -> int:
        """The bytes that arrived."""
        before, until = self.acknowledged, self.now + seconds
        while self.now < until:
            wait = max(0.0, self.under_way / self.rate - self.shortest)
            self.waits.append(wait)
            state = PathState(self.segment, int(self.under_way), self.acknowledged, self.shortest + wait, self.shortest)
            self.under_way += self.pacer.room(state, self.now).size
            self.now += step
            arrived = min(self.under_way, self.rate * step)
            self.under_way -= arrived
            self.acknowledged += int(arrived)
        return self.acknowledged - before


def test_a_slow_line_is_used_and_its_queue_stays_short() -> None:
    for rate, shortest in ((125_000, 0.0001), (1_250_000, 0.0001), (1_250_000, 0.05), (12_500_000, 0.02)):
        line = SlowPath(rate, shortest)
        line.run(3)
        line.waits.clear()
        assert line.run(5) > 0.75 * 5 * rate, (rate, shortest)
        median = sorted(line.waits)[len(line.waits) // 2]
        assert median <= max(2 * QUEUED, 2.5 * MSS / rate, shortest), (rate, shortest, median)


def test_a_fast_line_is_used_from_the_start() -> None:
    for segment in (MSS, 65_483):  # a network's and loopback's
        line = SlowPath(1e9, 0.0001, segment)
        assert line.run(0.02) >= FIRST, segment
        assert line.run(0.1) > 10 * MOST, segment


def test_a_line_on_which_nothing_waits_is_not_held_back_however_slow_this_machine_is() -> None:
    pacer, now = BulkPacer(), 0.0
    for _ in range(20):
        now += INTERVAL
        room = pacer.room(PathState(MSS, 0, 0, 0.001, 0.0001), now)
    assert room.size == MOST
    assert pacer.room(PathState(MSS, 0, 0, 0.5, 0.0001), now + STALE).size == FIRST, "after a pause it begins anew"
