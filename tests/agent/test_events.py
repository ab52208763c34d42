"""Events: numbered, published once they are written, replayed after a restart."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing

import twinshare.agent.events
from tests.agent.probe import probe
from twinshare.agent import limits
from twinshare.agent.database import Work
from twinshare.agent.event_shares import MAX_ROWS, KeptEvents
from twinshare.agent.events import HEARTBEAT_EVENT, LISTENER_BUFFER, open_events
from twinshare.agent.limits import OWN_LIMITS, AccountLimits, Share
from twinshare.agent.state import open_state
from twinshare.protocols.events import Event


async def test_listeners_hear_what_they_missed_also_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "db"
    async with open_state(file) as state, open_events(state) as events:
        async with events.subscribe() as heard:
            for number in range(5):
                events.publish(probe("test", n=number))
            first = [await heard.receive() for _ in range(5)]
        assert [event.data["n"] for event in first] == list(range(5))
    async with open_state(file) as state, open_events(state) as events:
        async with events.subscribe(after=first[2].id) as heard:
            events.publish(probe("test", n=5))
            with trio.fail_after(60):
                again = [await heard.receive() for _ in range(3)]
        assert [event.data["n"] for event in again] == [3, 4, 5]
        assert [event.id for event in again] == [first[3].id, first[4].id, first[4].id + 1]


async def test_what_is_published_last_is_written_too(tmp_path: Path) -> None:
    async with open_state(tmp_path / "db") as state:
        async with open_events(state) as events:
            events.publish(probe("last"))
        async with open_events(state) as events:
            assert [event.type for event in events.kept] == ["last"]


async def test_a_listener_that_does_not_read_is_cut_off_and_no_one_else(tmp_path: Path) -> None:
    async with open_state(tmp_path / "db") as state, open_events(state) as events:
        async with events.subscribe() as stuck, events.subscribe() as reader:
            read = 0
            for _ in range(LISTENER_BUFFER + 2):
                events.publish(probe("test"))
                with trio.fail_after(60):
                    await reader.receive()
                read += 1
            heard = 0
            async for _event in stuck:
                heard += 1
        assert (heard, read) == (LISTENER_BUFFER, LISTENER_BUFFER + 2)


async def test_a_heartbeat_comes_to_those_who_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twinshare.agent.events, "HEARTBEAT", 0.01)
    async with open_state(tmp_path / "db") as state, open_events(state) as events:
        async with events.subscribe(heartbeat=True) as beating, events.subscribe() as quiet:
            with trio.fail_after(60):
                assert [await beating.receive() for _ in range(2)] == [HEARTBEAT_EVENT] * 2
            events.publish(probe("test"))
            with trio.fail_after(60):
                assert (await quiet.receive()).type == "test"
        assert events.kept[-1].type == "test"
        assert not events._with_heartbeat


async def test_events_of_others_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message of a member was a wait for the disk, and a change of the node's user waited behind it."""
    monkeypatch.setattr(twinshare.agent.events, "OTHERS_EVERY", 3600.0)
    async with open_state(tmp_path / "db") as state:
        written, transact = 0, state.transact

        async def counting(work: Work) -> None:
            nonlocal written
            written += 1
            await transact(work)

        monkeypatch.setattr(state, "transact", counting)
        async with open_events(state) as events, events.subscribe() as heard:
            with trio.fail_after(60):
                events.publish(probe("first"), "peer-a")
                assert (await heard.receive()).type == "first"
                for number in range(20):
                    events.publish(probe("flood", n=number), f"peer-{number % 3}")
                    await trio.testing.wait_all_tasks_blocked()
                assert written == 1
                events.publish(probe("own"))
                assert [(await heard.receive()).type for _ in range(21)] == ["flood"] * 20 + ["own"]
        assert written == 2


KEPT = OWN_LIMITS.event_log.rows


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    async with open_state(tmp_path / "db") as state:
        async with open_events(state) as events:
            for _ in range(KEPT + 10):
                events.publish(probe("test"))
        async with open_events(state) as events:
            assert len(events.kept) == KEPT
            assert events.last_id == KEPT + 10


async def test_a4_an_account_that_floods_the_log_loses_only_its_own_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIMITS", AccountLimits(event_log=Share(20, 2600)))
    monkeypatch.setattr(twinshare.agent.events, "OTHERS_EVERY", 0.0)
    async with open_state(tmp_path / "db") as state:
        async with open_events(state) as events, events.subscribe() as heard:
            events.publish(probe("own"))
            events.publish(probe("other"), "peer-b")
            for number in range(100):
                events.publish(probe("flood", n=number), f"peer-a/token:{number % 7}")
                events.publish(probe("large", text="x" * 900), "peer-c")
                with trio.fail_after(60):
                    while (await heard.receive()).type != "large":
                        pass
            kept = [event.type for event in events.kept]
            assert kept.count("flood") == 20
            assert kept.count("large") == 2
            assert [event.id for event in events.kept] == sorted(event.id for event in events.kept)
        for _ in range(2):
            async with open_events(state) as events:
                kept = [event.type for event in events.kept]
                assert kept[:2] == ["own", "other"]
                assert (kept.count("flood"), kept.count("large")) == (20, 2)
                events.publish(probe("own"))
        rows = await state.query("SELECT count(*), sum(length(event)) FROM events")
        assert rows[0][0] < 30
        assert await state.query("SELECT count(*) FROM event_accounts WHERE id NOT IN (SELECT id FROM events)") == [
            (0,)
        ]


async def test_a_share_is_of_memory_so_that_small_values_are_not_cheap(tmp_path: Path) -> None:
    """Ten thousand empty maps are 10 KB when they are packed, and 640 KB in memory."""
    async with open_state(tmp_path / "db") as state, open_events(state) as events:
        for _ in range(10):
            events.publish(probe("maps", x=[{}] * 10_000), "peer-a")
        events.publish(probe("own"))
        with trio.fail_after(60):
            while not events.kept or events.kept[-1].type != "own":
                await trio.sleep(0.01)
        assert [event.type for event in events.kept] == ["maps", "own"]
        events.publish(probe("more than its share", x=[{}] * 30_000), "peer-a")
        events.publish(probe("later"))
        with trio.fail_after(60):
            while events.kept[-1].type != "later":
                await trio.sleep(0.01)
        assert [event.type for event in events.kept] == ["maps", "own", "later"]


async def test_a_listener_that_leaves_much_memory_unread_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twinshare.agent.events, "MAX_UNREAD", 100_000)
    async with (
        open_state(tmp_path / "db") as state,
        open_events(state) as events,
        events.subscribe() as reads,
        events.subscribe() as does_not,
    ):
        for number in range(20):
            events.publish(probe("large", n=number, text="x" * 10_000), "peer-a")
            assert (await reads.receive()).data["n"] == number
        seen = [event.data["n"] async for event in does_not]
        assert seen == list(range(9))


async def test_what_waits_for_a_full_disk_is_bounded_for_each_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIMITS", AccountLimits(event_log=Share(20, 1 << 20)))
    async with open_state(tmp_path / "db") as state, open_events(state) as events:
        for _ in range(1000):
            events.publish(probe("flood"), "peer-a")
        events.publish(probe("own"))
        with trio.fail_after(60):
            while not events.kept:
                await trio.sleep(0.01)
        assert [event.type for event in events.kept] == ["flood"] * 20 + ["own"]


def test_all_accounts_together_are_bounded_and_the_largest_gives_way() -> None:
    kept = KeptEvents()
    for number in range(2 * MAX_ROWS):
        event = Event(id=number + 1, type="x", at=datetime.now(UTC))
        kept.add(event, "small" if number == 0 else f"peer-{number % 100}", 10)
    assert len(list(kept)) == MAX_ROWS
    assert next(iter(kept)).id == 1


async def test_b6_a_listener_that_missed_what_is_not_kept_any_more_gets_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIMITS", AccountLimits(event_log=Share(3, 1 << 20)))
    async with open_state(tmp_path / "db") as state:
        async with open_events(state) as events:
            events.publish(probe("own"))
            for _ in range(6):
                events.publish(probe("flood"), "peer-a")
        for _ in range(2):
            async with open_events(state) as events:
                for after, expected in (
                    (0, [("reset", 0), ("own", 1), ("flood", 5), ("flood", 6), ("flood", 7)]),
                    (3, [("reset", 3), ("flood", 5), ("flood", 6), ("flood", 7)]),
                    (4, [("flood", 5), ("flood", 6), ("flood", 7)]),
                    (7, []),
                ):
                    async with events.subscribe(after=after) as heard:
                        found = [heard.receive_nowait() for _ in range(heard.statistics().current_buffer_used)]
                    assert [(event.type, event.id) for event in found] == expected


async def test_b6_a_listener_that_comes_from_beyond_the_newest_event_gets_a_reset(tmp_path: Path) -> None:
    async with open_state(tmp_path / "db") as state, open_events(state) as events:
        for after in (1, 500):
            async with events.subscribe(after=after) as heard:
                with trio.fail_after(60):
                    first = await heard.receive()
                    events.publish(probe("live"))
                    assert (first.type, first.id) == ("reset", events.last_id)
                    live = await heard.receive()
            assert (live.type, live.id) == ("live", first.id + 1)
        async with events.subscribe(after=live.id) as heard:
            events.publish(probe("next"))
            with trio.fail_after(60):
                assert (await heard.receive()).type == "next"
