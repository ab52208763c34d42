"""What has arrived of a stream and was not read: its order, and the memory that it keeps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from twinshare.agent.p2p.libp2p.yamux.state import Unread


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 5000), st.integers(0, 70_000)), max_size=12), st.data())
def test_what_was_not_read_comes_in_its_order_and_pins_little(sizes: list[int], draw: st.DataObject) -> None:
    unread, model = Unread(), b""
    for number, size in enumerate(sizes):
        message = bytes([number]) * (size + draw.draw(st.integers(0, 70_000)))
        unread.add(memoryview(message)[:size])
        model += message[:size]
        if draw.draw(st.booleans()):
            most = draw.draw(st.integers(1, 100_000))
            assert unread.take(most) == model[:most]
            model = model[most:]
        assert len(unread) == len(model)
    held = sum(len(part.obj) for part in unread._parts if isinstance(part, memoryview) and isinstance(part.obj, bytes))
    assert held <= 2 * sum(sizes)
    assert unread.take() == model


def test_a_stream_of_small_pieces_is_kept_together() -> None:
    unread = Unread()
    for _ in range(100_000):
        unread.add(memoryview(b"x" * 13)[12:])
    assert len(unread) == 100_000
    assert len(unread._parts) < 100
