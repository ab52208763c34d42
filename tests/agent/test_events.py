"""Events: numbered, published once they are written, replayed after a restart."""

from pathlib import Path

import pytest
import trio

import twinshare.agent.events
from tests.agent.probe import probe
from twinshare.agent.events import HEARTBEAT_EVENT, KEPT, LISTENER_BUFFER, open_events
from twinshare.agent.state import open_state


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


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    async with open_state(tmp_path / "db") as state:
        async with open_events(state) as events:
            for _ in range(KEPT + 10):
                events.publish(probe("test"))
        async with open_events(state) as events:
            assert len(events.kept) == KEPT
            assert events.last_id == KEPT + 10
