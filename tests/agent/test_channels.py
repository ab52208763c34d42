"""The channel whose sender never waits: what is displaced when it is full, and its ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from twinshare.agent.channels import LossyChannel


def waiting(channel: LossyChannel[int]) -> list[int]:
    return [channel.receive.receive_nowait() for _ in range(channel.receive.statistics().current_buffer_used)]


def test_the_oldest_is_displaced() -> None:
    channel = LossyChannel[int](3)
    for number in range(10):
        channel.publish(number)
    assert waiting(channel) == [7, 8, 9]


def test_the_overflow_item_displaces_all() -> None:
    channel = LossyChannel[int](3, overflow=-1)
    for number in range(4):
        channel.publish(number)
    assert waiting(channel) == [-1, 3]


async def test_what_waits_is_read_after_the_close() -> None:
    channel = LossyChannel[int](2)
    channel.publish(1)
    channel.close()
    assert [number async for number in channel.receive] == [1]


def test_a_reader_that_has_closed_is_no_error() -> None:
    channel = LossyChannel[int](2)
    channel.receive.close()
    channel.publish(1)


async def test_a_waiting_reader_gets_the_item() -> None:
    channel = LossyChannel[int](2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.receive.receive)
        await trio.testing.wait_all_tasks_blocked()
        channel.publish(1)
    with pytest.raises(trio.WouldBlock):
        channel.receive.receive_nowait()
