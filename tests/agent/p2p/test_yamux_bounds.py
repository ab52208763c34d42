"""The bounds of a yamux session, each to the byte, and what is refused beyond them."""

from __future__ import annotations

import pytest

from twinshare.agent.p2p.libp2p.yamux.frame import ACK, DATA, PING, RST, SYN, WINDOW, ProtocolError, encode
from twinshare.agent.p2p.libp2p.yamux.outbox import MAX_ANSWERS, MAX_PAYLOAD
from twinshare.agent.p2p.libp2p.yamux.session import Event, Session, SessionOver
from twinshare.agent.p2p.libp2p.yamux.state import INITIAL_WINDOW

from .test_yamux_session import LIMITS, opened


def test_data_on_stream_zero_and_after_the_end_is_refused() -> None:
    client, server, near, _ = opened()
    with pytest.raises(ProtocolError, match="stream 0"):
        client.receive(encode(DATA, 0, 0, 1))
    client.finish(near)
    server.receive(client.outbox.take())
    with pytest.raises(ProtocolError, match="after its end"):
        server.receive(encode(DATA, 0, near.id, 1))


def test_as_much_credit_as_a_window_can_hold_is_taken() -> None:
    client, _, near, _ = opened()
    client.receive(encode(WINDOW, 0, near.id, 2**32 - 1 - near.send_credit))
    assert near.send_credit == 2**32 - 1


def test_a_session_that_is_over_asks_nobody() -> None:
    client, _, _, _ = opened()
    client.end()
    client.outbox.take()
    assert [client.tick() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SessionOver):
        client.ping()
    assert client.outbox.take() == b""


def test_answers_are_bounded_to_the_byte() -> None:
    client, _, _, _ = opened()
    client.outbox.answer(bytes(MAX_ANSWERS))
    with pytest.raises(ProtocolError):
        client.outbox.answer(b"x")
    client.outbox.take()
    client.outbox.answer(bytes(MAX_ANSWERS))


def test_nothing_more_is_accepted_for_a_stream_that_was_reset() -> None:
    client, _, near, _ = opened()
    client.reset(near)
    client.outbox.take()
    assert client.room(near) == client.write(near, memoryview(b"x")) == 0


def test_windows_of_all_streams_grow_within_one_budget() -> None:
    client, server = Session(client=True, limits=LIMITS), Session(client=False, limits=LIMITS)
    streams = [client.open() for _ in range(3)]
    for near in streams:
        server.receive(client.outbox.take())
        far = server.streams[near.id]
        for _ in range(200):
            client.write(near, memoryview(b"x" * MAX_PAYLOAD))
            server.receive(client.outbox.take())
            server.read(far)
            client.receive(server.outbox.take())
    grown = [server.streams[near.id].window - INITIAL_WINDOW for near in streams]
    assert grown == [3 * INITIAL_WINDOW, 2 * INITIAL_WINDOW, 0], "the budget of five is all that they get together"


def test_nothing_more_is_accepted_for_a_stream_whose_writing_has_ended() -> None:
    client, _, near, _ = opened()
    assert client.room(near) == MAX_PAYLOAD
    client.finish(near)
    client.outbox.take()
    assert client.room(near) == client.write(near, memoryview(b"x")) == 0


def test_credit_is_given_back_at_half_a_window() -> None:
    client, server, near, far = opened()
    for _ in range(3):
        client.write(near, memoryview(bytes(MAX_PAYLOAD)))
    server.receive(client.outbox.take())
    server.read(far, INITIAL_WINDOW // 2 - 1)
    assert server.outbox.take() == b""
    server.read(far, 1)
    assert server.outbox.take() == encode(WINDOW, 0, far.id, INITIAL_WINDOW // 2)
    for _ in range(2):
        client.write(near, memoryview(bytes(MAX_PAYLOAD)))
    server.receive(client.outbox.take())
    server.read(far, INITIAL_WINDOW // 2 - 1)
    assert server.outbox.take() == b"", "what was given back does not count again"


def test_data_of_a_stream_that_is_not_taken_is_refused_once_or_not_at_all() -> None:
    """A reset is never answered: two nodes would send each other resets without an end."""
    server = Session(client=False, limits=LIMITS)
    server.receive(encode(DATA, RST, 99, 4) + b"late")
    assert server.outbox.take() == b""
    for number in range(LIMITS.streams_each_way):
        server.receive(encode(WINDOW, SYN, 2 * number + 1, 0))
    server.outbox.take()
    server.receive(encode(DATA, SYN, 101, 4) + b"more")
    assert server.outbox.take() == encode(WINDOW, RST, 101, 0)


def test_only_an_answer_to_the_last_ping_is_one() -> None:
    client, _, _, _ = opened()
    number = client.ping()
    assert client.receive(encode(PING, 0, 0, number)) == []
    assert client.receive(encode(PING, ACK, 0, number + 1)) == []
    assert client.receive(encode(PING, ACK, 0, number)) == [(Event.PONG, None)]
