"""Two sessions joined by byte pipes, driven by drawn lists of operations against a model of what must arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinshare.agent.p2p.libp2p.yamux.frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    FrameReader,
    Header,
    ProtocolError,
    encode,
)
from twinshare.agent.p2p.libp2p.yamux.outbox import HIGH_WATER, MAX_ANSWERS, MAX_PAYLOAD
from twinshare.agent.p2p.libp2p.yamux.session import (
    Event,
    Session,
    SessionLimits,
    SessionOver,
    TooManyStreams,
)
from twinshare.agent.p2p.libp2p.yamux.state import INITIAL_WINDOW, StreamState

LIMITS = SessionLimits(streams_each_way=4, window=4 * INITIAL_WINDOW, window_budget=5 * INITIAL_WINDOW)


@dataclass(eq=False)
class End:
    """One side's view of a stream, and the model beside it."""

    state: StreamState
    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    abandoned: bool = False  # closed or reset by us: what is under way is lost


class Side:
    def __init__(self, *, client: bool) -> None:
        self.session = Session(client=client, limits=LIMITS)
        self.ends: dict[int, End] = {}
        self.wire = bytearray()  # what we wrote and the other side has not got yet

    def flush(self) -> None:
        self.wire += self.session.outbox.take()

    def take_in(self, data: bytes) -> None:
        for event, state in self.session.receive(data):
            if event is Event.OPENED and state is not None:
                self.ends[state.id] = End(state)
        self.check()

    def check(self) -> None:
        live = self.session.streams.values()
        assert sum(state.window - INITIAL_WINDOW for state in live) <= LIMITS.window_budget
        for state in live:
            assert not state.over
            assert state.receive_credit >= 0
            assert len(state.unread) + state.receive_credit + state.unacknowledged <= state.window <= LIMITS.window


class Pair:
    def __init__(self) -> None:
        self.sides = (Side(client=True), Side(client=False))

    def deliver(self, sender: int, size: int) -> None:
        side, other = self.sides[sender], self.sides[1 - sender]
        side.flush()
        data = bytes(side.wire[:size])
        del side.wire[:size]
        other.take_in(data)

    def end(self, side: int, pick: int) -> End | None:
        ends = list(self.sides[side].ends.values())
        return ends[pick % len(ends)] if ends else None

    def act(self, op: tuple[str, int, int, int]) -> None:
        name, number, pick, size = op
        side = self.sides[number]
        if name == "deliver":
            self.deliver(number, size)
        elif name == "open":
            try:
                state = side.session.open()
            except TooManyStreams:
                return
            side.ends[state.id] = End(state)
        elif name == "ping":
            side.session.ping()
        elif (end := self.end(number, pick)) is not None:
            self.act_on_stream(name, side, end, size)
        side.check()

    def act_on_stream(self, name: str, side: Side, end: End, size: int) -> None:
        if name == "write":
            data = bytes((len(end.sent) + i) % 251 for i in range(min(size, 1000))) * (1 + size // 1000)
            accepted = side.session.write(end.state, memoryview(data))
            end.sent += data[:accepted]
        elif name == "read":
            end.got += side.session.read(end.state, size)
        elif name == "finish":
            side.session.finish(end.state)
        else:
            end.abandoned = True
            (side.session.close if name == "close" else side.session.reset)(end.state)

    def settle(self) -> None:
        """Deliver and read until nothing moves any more."""
        for _ in range(100):
            moved = False
            for number, side in enumerate(self.sides):
                for end in side.ends.values():
                    data = side.session.read(end.state)
                    end.got += data
                    moved = moved or bool(data)
                side.flush()
                moved = moved or bool(side.wire)
                self.deliver(number, len(side.wire))
            if not moved:
                return
        raise AssertionError("two idle sessions keep talking")


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("open", "write", "write", "read", "deliver", "deliver", "finish", "close", "reset", "ping")),
        st.integers(0, 1),
        st.integers(0, 7),
        st.one_of(st.integers(1, 64), st.integers(1, 300_000)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_what_is_written_arrives_in_order_and_no_window_is_passed(
    operations: Sequence[tuple[str, int, int, int]],
) -> None:
    pair = Pair()
    for operation in operations:
        pair.act(operation)
    pair.settle()
    for number, side in enumerate(pair.sides):
        other = pair.sides[1 - number]
        for end in side.ends.values():
            far = other.ends.get(end.state.id)
            if far is None:  # refused for the limit: we got a reset
                assert end.state.broken or end.abandoned
                continue
            assert far.sent.startswith(end.got)
            if not (end.abandoned or far.abandoned):
                assert end.got == far.sent
                assert end.state.read_ended == far.state.write_ended
        for state in side.session.streams.values():
            assert state.id in other.session.streams or other.ends[state.id].abandoned


def opened() -> tuple[Session, Session, StreamState, StreamState]:
    client, server = Session(client=True), Session(client=False)
    near = client.open()
    event, far = server.receive(client.outbox.take())[0]
    assert event is Event.OPENED
    assert far is not None
    client.receive(server.outbox.take())
    return client, server, near, far


def test_a_frame_cut_anywhere_is_read_the_same() -> None:
    wire = encode(DATA, SYN, 3, 5) + b"hello" + encode(WINDOW, FIN, 3, 9) + encode(PING, SYN, 0, 7)
    expected = [Header(DATA, SYN, 3, 5), b"hello", Header(WINDOW, FIN, 3, 9), Header(PING, SYN, 0, 7)]
    for cut in range(len(wire) + 1):
        reader = FrameReader()
        context = [*reader.feed(wire[:cut]), *reader.feed(wire[cut:])]
        body = b"".join(bytes(part) for part in context if isinstance(part, memoryview))
        headers = [part for part in context if isinstance(part, Header)]
        assert [headers[0], body, *headers[1:]] == expected


def test_whole_frames_are_taken_in_until_they_are_enough() -> None:
    small, large = encode(DATA, 0, 3, 5) + b"hello", encode(DATA, 0, 3, 5000) + bytes(5000)
    wire = small * 3 + large + small
    reader = FrameReader()
    assert len([part for part in reader.feed(wire, 40) if isinstance(part, Header)]) == 3
    assert reader.taken == 3 * len(small)
    assert len(list(reader.feed(wire[reader.taken :], 40))) == 2, "the rest of one body costs little"
    assert reader.taken == len(large)
    list(reader.feed(wire[:7], 40))
    list(reader.feed(wire[7:], 10))
    assert reader.taken == len(small) - 7, "what was held is not counted again"


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=20), st.booleans())
def test_random_bytes_end_in_a_protocol_error_or_nothing(chunks: list[bytes], client: bool) -> None:
    session = Session(client=client, limits=LIMITS)
    try:
        for chunk in chunks:
            session.receive(chunk)
    except ProtocolError:
        session.go_away(violated=True)


FRAMES = st.builds(
    lambda kind, flags, stream, length: encode(kind, flags, stream, length) + (b"x" * length if kind == DATA else b""),
    st.integers(0, 3),
    st.integers(0, 15),
    st.integers(0, 9),
    st.integers(0, 300),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAMES, max_size=40), st.booleans())
def test_well_formed_nonsense_never_breaks_the_bounds(frames: list[bytes], client: bool) -> None:
    session = Session(client=client, limits=LIMITS)
    states: list[StreamState] = []
    try:
        for frame in frames:
            states += [s for e, s in session.receive(frame) if e is Event.OPENED and s is not None]
            assert len(session.streams) <= LIMITS.streams_each_way
            assert all(len(state.unread) <= INITIAL_WINDOW for state in states)
    except ProtocolError:
        session.end()
    assert all(not state.over or session.streams.get(state.id) is not state for state in states)


def test_a_sender_that_ignores_the_window_is_caught_at_the_header() -> None:
    _, server, near, _ = opened()
    with pytest.raises(ProtocolError, match="past the window"):
        server.receive(encode(DATA, 0, near.id, INITIAL_WINDOW + 1))


def test_a_reader_that_stops_holds_the_sender_at_the_window() -> None:
    client, server, near, far = opened()
    accepted = 0
    while n := client.write(near, memoryview(b"x" * MAX_PAYLOAD)):
        accepted += n
        server.receive(client.outbox.take())
    assert accepted == INITIAL_WINDOW == len(far.unread)
    assert not client.writable(near)


def test_a_fast_reader_gets_a_larger_window_up_to_the_limit_and_the_budget() -> None:
    client, server, near, far = opened()
    for _ in range(200):
        client.write(near, memoryview(b"x" * MAX_PAYLOAD))
        server.receive(client.outbox.take())
        server.read(far)
        client.receive(server.outbox.take())
    assert far.window == server.limits.window
    server.reset(far)
    assert server._grown == 0


def test_output_beyond_high_water_is_not_accepted() -> None:
    client, _, near, _ = opened()
    near.send_credit = 10 * HIGH_WATER
    while client.write(near, memoryview(b"x" * MAX_PAYLOAD)):
        pass
    assert HIGH_WATER <= client.outbox.size < HIGH_WATER + MAX_PAYLOAD + 100


def test_a_peer_that_asks_and_never_reads_is_cut_off() -> None:
    session = Session(client=False)
    pings = encode(PING, SYN, 0, 1) * (1 + MAX_ANSWERS // 12)
    with pytest.raises(ProtocolError, match="without reading"):
        session.receive(pings)
    assert session.outbox.size <= MAX_ANSWERS


def test_streams_beyond_the_limit_are_reset_and_the_limit_can_change() -> None:
    session = Session(client=False)
    session.max_inbound = 1
    session.receive(encode(WINDOW, SYN, 1, 0) + encode(WINDOW, SYN, 3, 0))
    assert session.outbox.take() == encode(WINDOW, ACK, 1, 0) + encode(WINDOW, RST, 3, 0)
    session.max_inbound = 2
    session.receive(encode(WINDOW, SYN, 5, 0))
    assert set(session.streams) == {1, 5}


def test_our_own_streams_are_bounded_too() -> None:
    session = Session(client=True, limits=LIMITS)
    states = [session.open() for _ in range(LIMITS.streams_each_way)]
    with pytest.raises(TooManyStreams):
        session.open()
    session.reset(states[0])
    session.open()


@pytest.mark.parametrize("stream_id", [2, 1])
def test_a_stream_id_of_the_wrong_side_or_in_use_is_refused(stream_id: int) -> None:
    session = Session(client=False)
    session.receive(encode(WINDOW, SYN, 1, 0))
    with pytest.raises(ProtocolError, match="cannot open"):
        session.receive(encode(WINDOW, SYN, stream_id, 0))


def test_data_with_the_syn_flag_opens_and_carries() -> None:
    session = Session(client=False)
    events = session.receive(encode(DATA, SYN | FIN, 1, 2) + b"hi")
    state = events[0][1]
    assert state is not None
    assert session.read(state) == b"hi"
    assert state.read_ended


def test_data_for_a_closed_stream_is_answered_with_a_reset() -> None:
    client, server, near, far = opened()
    server.close(far)
    client.receive(server.outbox.take())
    assert near.read_ended
    assert not near.broken
    client.write(near, memoryview(b"late"))
    server.receive(client.outbox.take())
    client.receive(server.outbox.take())
    assert near.broken
    assert not client.streams
    assert not server.streams


def test_closing_frees_a_sender_that_waits_for_credit() -> None:
    client, server, near, far = opened()
    while client.write(near, memoryview(b"x" * MAX_PAYLOAD)):
        server.receive(client.outbox.take())
    server.close(far)
    client.receive(server.outbox.take())
    assert client.writable(near)


def test_the_end_of_a_stream_and_its_data_outlive_a_later_reset() -> None:
    client, server, near, far = opened()
    server.write(far, memoryview(b"answer"))
    server.finish(far)
    client.receive(server.outbox.take())
    client.receive(encode(WINDOW, RST, near.id, 0))
    assert client.read(near) == b"answer"
    assert near.read_ended


def test_a_reset_with_a_reason_gives_no_credit() -> None:
    client, _, near, _ = opened()
    client.receive(encode(WINDOW, RST, near.id, 4242))
    assert near.broken
    assert near.send_credit == INITIAL_WINDOW


def test_credit_beyond_what_a_window_can_hold_is_refused() -> None:
    client, _, near, _ = opened()
    with pytest.raises(ProtocolError, match="credit"):
        client.receive(encode(WINDOW, 0, near.id, 2**32 - 1))


def test_silence_is_counted_in_ticks_and_ended_by_anything_heard() -> None:
    client, server, _, _ = opened()
    assert client.tick() == 0
    assert [client.tick() for _ in range(3)] == [1, 2, 3]
    server.receive(client.outbox.take())
    events = client.receive(server.outbox.take())
    assert (Event.PONG, None) in events
    assert client.tick() == 0


def test_going_away_lets_streams_go_on_but_opens_none() -> None:
    client, server, near, _ = opened()
    client.receive(encode(GO_AWAY, 0, 0, 0))
    with pytest.raises(SessionOver):
        client.open()
    assert client.write(near, memoryview(b"x")) == 1
    with pytest.raises(ProtocolError, match="reason 2"):
        server.receive(encode(GO_AWAY, 0, 0, 2))


def test_the_end_of_the_connection_breaks_every_stream() -> None:
    client, _, near, _ = opened()
    client.go_away()
    assert near.broken
    assert not client.streams
    assert client.outbox.take() == encode(GO_AWAY, 0, 0, 0)
    with pytest.raises(SessionOver):
        client.open()
