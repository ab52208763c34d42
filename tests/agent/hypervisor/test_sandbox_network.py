"""Where guests can go: out to the internet through `pasta`, and nowhere on the machine that carries them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.agent.hypervisor.sandboxes import (
    OUTSIDE,
    OUTSIDE_6,
    OWN,
    OWN_6,
    Agent,
    agent,
    in_namespace,
    lively_world,
    reach,
    root,
)
from tests.stopwatch import within

pytestmark = [pytest.mark.system, root]


@pytest.fixture
def host() -> Iterator[str]:
    """A machine with services on all its addresses, in a namespace; its internet answers too."""
    with lively_world() as name:
        yield name


async def hears(caller: Agent, address: str, port: int) -> str:
    _, out, _ = await caller.tell("run", argv=reach(address, port))
    return str(out)


async def test_guests_reach_the_internet_and_no_address_of_the_machine(tmp_path: Path, host: str) -> None:
    async with agent(tmp_path, prefix=in_namespace(host)) as caller:
        assert await caller.tell("connected", within=60)
        assert await hears(caller, OUTSIDE, 80) == "internet"
        assert await hears(caller, OUTSIDE_6, 80) == "internet"
        for address in (*OWN, *OWN_6):
            assert await hears(caller, address, 8080) == ""
        assert await hears(caller, "198.18.0.1", 80) == "internet"  # the gateway is not the machine


async def test_an_address_that_comes_later_is_out_of_reach_too_and_back_when_it_goes(tmp_path: Path, host: str) -> None:
    async with agent(tmp_path, prefix=in_namespace(host)) as caller:
        assert await caller.tell("connected", within=60)
        _ip("-n", host, "addr", "add", "198.18.0.77/24", "dev", "ts0")
        await _until(caller, "unreachable 198.18.0.77", present=True)
        assert await hears(caller, "198.18.0.77", 8080) == ""
        _ip("-n", host, "addr", "del", "198.18.0.77/24", "dev", "ts0")
        await _until(caller, "unreachable 198.18.0.77", present=False)
        assert await hears(caller, OUTSIDE, 80) == "internet"


async def test_the_way_out_is_mended_when_it_dies(tmp_path: Path, host: str) -> None:
    async with agent(tmp_path, prefix=in_namespace(host)) as caller:
        assert await caller.tell("connected", within=60)
        for pid in (await caller.tell("state"))["pids"]:
            await caller.run("kill", "-9", str(pid))
        with within(10):
            while await hears(caller, OUTSIDE, 80) != "internet":
                await trio.sleep(0.1)


async def test_a_machine_without_a_network_says_so_and_gets_one_later(tmp_path: Path, host: str) -> None:
    _ip("-n", host, "route", "del", "default")
    _ip("-n", host, "-6", "route", "del", "default")
    async with agent(tmp_path, prefix=in_namespace(host)) as caller:
        with trio.fail_after(60):
            while not (await caller.tell("state"))["problems"]:
                await trio.sleep(0.1)
        assert "no outside network" in (await caller.tell("state"))["problems"][0]
        _ip("-n", host, "route", "add", "default", "via", "198.18.0.1")
        assert await caller.tell("connected", within=60)


async def test_a_second_way_out_is_taken_and_a_lost_one_left(tmp_path: Path, host: str) -> None:
    _ip("-n", host, "route", "del", "default")
    async with agent(tmp_path, prefix=in_namespace(host)) as caller:
        assert await caller.tell("connected", within=60)
        assert await hears(caller, OUTSIDE_6, 80) == "internet"
        assert await hears(caller, OUTSIDE, 80) == ""
        _ip("-n", host, "route", "add", "default", "via", "198.18.0.1")  # the lease came late
        with trio.fail_after(60):
            while await hears(caller, OUTSIDE, 80) != "internet":
                await trio.sleep(0.1)
        assert await hears(caller, OUTSIDE_6, 80) == "internet"


async def _until(caller: Agent, route: str, *, present: bool) -> None:
    with trio.fail_after(60):
        while (route in await caller.run("ip", "route")) is not present:
            await trio.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)
