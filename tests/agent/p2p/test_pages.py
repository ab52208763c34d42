"""Lists between peers: in pages, of any length, bounded on both sides, and readable for a version without pages."""

from __future__ import annotations

import msgspec
import pytest
import trio.testing

from tests.agent.p2p.test_rpc import nothing_left, request, settle
from tests.agent.p2p.workshop import TABLE, Pair, Piece, open_pair
from twinshare.agent.p2p import calls, peer_session
from twinshare.agent.p2p.session_driver import MAX_PENDING
from twinshare.protocols.errors import TooLarge
from twinshare.protocols.frames import MAX_FRAME
from twinshare.protocols.pages import MAX_PAGE, MAX_ROW, PAGES_AHEAD, pack_pages

PIECES = TABLE["pieces"]


async def names(pair: Pair, count: int, size: int) -> list[str]:
    return [piece.name for piece in await pair.call("pieces", count=count, size=size)]


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 0), (5000, 500), (9, MAX_ROW - 100), (3, MAX_PAGE)])
async def test_a_list_has_all_its_rows_in_order(count: int, size: int) -> None:
    async with open_pair() as pair:
        assert await names(pair, count, size) == [f"cog-{number}" for number in range(count)]
        await nothing_left(pair)


async def test_a_caller_that_knows_no_pages_gets_one_frame() -> None:
    """As the first release calls, and as it answers: without items, the whole list in the result."""
    async with open_pair() as pair:
        assert pair.session is not None
        body = await pair.session.call("pieces", request({"count": 900, "size": 1000}))
        assert len(PIECES.unpack_result(body)) == 900
        with pytest.raises(TooLarge):
            await pair.session.call("pieces", request({"count": 1100, "size": 1000}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twinshare.agent.p2p.rpc.pack_pages", lambda rows: [msgspec.msgpack.encode(rows)])
            assert len(await names(pair, 900, 1000)) == 900


async def test_a_list_beyond_the_bounds_is_refused_and_its_sender_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_pair() as pair:
        monkeypatch.setattr(calls, "MAX_ROWS", 999)
        with pytest.raises(TooLarge, match="999 rows"):
            await names(pair, 1000, 1)
        monkeypatch.setattr(peer_session, "MAX_LIST", 1 << 20)
        with pytest.raises(TooLarge, match="1048576 bytes"):
            await names(pair, 900, 10_000)
        await nothing_left(pair)


async def test_who_does_not_read_on_is_sent_a_few_pages() -> None:
    async with open_pair() as pair:
        assert pair.session is not None
        monkey = pytest.MonkeyPatch()
        monkey.setattr(pair.session, "grant", lambda number, items: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names, pair, 5000, 1000)
            await settle()
            [outcome] = pair.session._outcomes.values()
            assert len(outcome.pages) == PAGES_AHEAD
            nursery.cancel_scope.cancel()
        monkey.undo()
        assert outcome.pages == []
        await nothing_left(pair)


async def test_answers_are_packed_only_while_their_reader_keeps_up() -> None:
    """A peer that calls and does not read holds a few frames here, not one for each call."""
    async with open_pair() as pair:
        assert pair.session is not None
        serving = pair.server._sessions["a"]
        held = 0
        with pytest.MonkeyPatch.context() as patch:
            stopped = trio.Event()

            async def send_nothing(data: object) -> None:
                await stopped.wait()

            patch.setattr(serving._driver._stream, "send_all", send_nothing)
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(pair.session.call, "large", request({"size": MAX_FRAME - 1000}))
                await settle()
                held = serving._session.pending
                nursery.cancel_scope.cancel()
        assert 0 < held < MAX_PENDING + 2 * MAX_FRAME


def test_a_row_that_no_frame_can_carry_loses_its_largest_optional_fields() -> None:
    [page] = pack_pages([Piece(name="cog", size=3, note="x" * MAX_FRAME)])
    assert PIECES.unpack_result(page) == [Piece(name="cog", size=3)]
