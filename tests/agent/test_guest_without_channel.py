"""Guests in which no program serves the channel: commands by the QEMU guest agent, ports by the network.

The guest agent is the simulated one, whose commands are processes of this machine.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.agent.nodes import open_test_node, spec
from tests.agent.test_guest_sessions import guests_of, read_all, run
from tests.stopwatch import within
from twinshare.agent.guest import agent_exec, vm_guest
from twinshare.agent.guest.agent_exec import MAX_OUTPUT, start_by_agent
from twinshare.agent.guest.channel import ChannelPort
from twinshare.agent.guest.guests import BOOTS_WITHIN, boots_within
from twinshare.agent.guest.vm_guest import VmGuest
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.errors import GuestRefused, GuestUnreachable, WrongState
from twinshare.protocols.guest import ExecRequest, SessionState
from twinshare.protocols.guest_service import GuestService
from twinshare.protocols.guest_stream import AttachSession, DialPort, Finished, Input, InputEnd, Output, OutputEnd

AGENT = "fake://?guest_agent=1"


@asynccontextmanager
async def running(folder: Path, uri: str = AGENT) -> AsyncIterator[tuple[Node, GuestService, MemoryHypervisor, str]]:
    async with open_test_node(folder, uri=uri) as (node, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        yield node, guests_of(node), hypervisor, made.id


async def test_a_short_command_runs_by_the_guest_agent(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        done = await run(guests, "sh", "-c", "echo x; echo y >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == ("x\n", "y\n", 3)
        done = await run(guests, "sh", "-c", 'echo "$A from $PWD"', env={"A": "b c"}, workdir="/usr")
        assert done.stdout == "b c from /usr\n"
        done = await run(guests, "no-such-program")
        assert done.exit_code == 127
        # As a session, too: it is how the command line runs commands.
        started = await run(guests, "echo", "later", detach=True, interactive=True)
        assert await read_all(node, started.session) == (b"later\n", Finished(exit_code=0))
        [*_, last] = await guests.list_vm_sessions("one")
        assert (last.id, last.state) == (started.session, SessionState.ENDED)


async def test_its_output_is_cut_in_the_guest_and_its_time_is_bounded(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        done = await run(
            guests, "sh", "-c", f"head -c {3 * MAX_OUTPUT} /dev/zero; head -c {2 * MAX_OUTPUT} /dev/zero >&2"
        )
        assert (len(done.stdout), len(done.stderr)) == (MAX_OUTPUT, MAX_OUTPUT)
        done = await run(guests, "sleep", "100", timeout=1)
        assert done.exit_code == 124


async def test_what_the_agent_cannot_do_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        for fields in ({"terminal": True}, {"user": "debian"}, {"stdin": "words"}):
            with pytest.raises(GuestUnreachable, match="can only run short commands"):
                await run(guests, "true", **fields)
        with pytest.raises(GuestUnreachable, match="may have 32768 bytes"):
            await run(guests, "true", "x" * 40_000)
        started = await run(guests, "sleep", "1", detach=True, interactive=True)
        async with node.guest_stream(LOCAL_ADMIN, "one", AttachSession(session=started.session)) as stream:
            with pytest.raises(GuestUnreachable, match="no input"):
                await stream.send(Input(data=b"lost"))
        with pytest.raises(WrongState, match="sends no signals"):
            await guests.signal_session("one", started.session, "INT")


async def test_a_session_of_the_agent_is_lost_with_the_node(tmp_path: Path) -> None:
    async with running(tmp_path, f"fake://{tmp_path}/fake.json?guest_agent=1") as (_, guests, _, _):
        started = await run(guests, "sleep", "100", detach=True)
    async with open_test_node(tmp_path, uri=f"fake://{tmp_path}/fake.json?guest_agent=1") as (node, _, _):
        with within(10):
            while (found := await guests_of(node).get_session("one", started.session)).state is SessionState.RUNNING:
                await trio.sleep(0.01)
        assert found.reason


class LyingAgent:
    """A guest agent that answers what it likes."""

    def __init__(self, status: object, started: object = None) -> None:
        self.answers = {"guest-exec": started or {"pid": 1}, "guest-exec-status": status}

    async def ask(self, command: str, arguments: Mapping[str, object]) -> object:
        await trio.lowlevel.checkpoint()
        return self.answers[command]


TOO_MUCH = b64encode(bytes(4 * MAX_OUTPUT)).decode()
LIES = [
    LyingAgent({"exited": "yes"}),
    LyingAgent([]),
    LyingAgent({"exited": True, "exitcode": 1 << 40}),
    LyingAgent({"exited": True, "exitcode": 0, "out-data": "*"}),
    LyingAgent({"exited": True, "exitcode": 0, "out-data": TOO_MUCH}),
    LyingAgent({"exited": True}, started={"pid": "x"}),
]


@pytest.mark.parametrize("agent", LIES)
async def test_an_agent_that_lies_is_refused(agent: LyingAgent) -> None:
    with trio.fail_after(20), pytest.raises(GuestRefused, match="answer is malformed"):
        await (await start_by_agent(agent.ask, ExecRequest(command=["true"]))).wait()


async def test_an_agent_that_reports_no_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_exec, "GRACE", -0.8)
    command = await start_by_agent(LyingAgent({"exited": False}).ask, ExecRequest(command=["true"], timeout=1))
    with trio.fail_after(20), pytest.raises(GuestUnreachable, match="does not report the end"):
        await command.wait()


async def test_a_guest_that_boots_is_waited_for(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Its channel opens and nobody answers: until it should have booted, and for a moment after that."""
    guest = VmGuest("id", tmp_path)

    async def dial() -> trio.SocketStream:
        await trio.sleep_forever()
        raise AssertionError

    async def is_open() -> bool:
        raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.run, ChannelPort(dial, is_open), "one", BOOTS_WITHIN)
        await trio.testing.wait_all_tasks_blocked()
        for expected in (BOOTS_WITHIN, vm_guest.READY_WITHIN):
            began = trio.current_time()
            with pytest.raises(GuestUnreachable, match="no program answers"):
                await guest.ready_channel()
            assert trio.current_time() - began == pytest.approx(expected)
        nursery.cancel_scope.cancel()


async def test_the_time_to_boot_counts_from_the_start_of_the_vm(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, _, id):
        record = node.vms.inventory.find(id)
        assert BOOTS_WITHIN - 60 < boots_within(record) <= BOOTS_WITHIN
        assert record.domain.started_at
        for age, left in ((80, BOOTS_WITHIN - 80), (500, 0), (-500, BOOTS_WITHIN)):
            domain = replace(record.domain, started_at=datetime.now(UTC) - timedelta(seconds=age))
            assert max(boots_within(replace(record, domain=domain)), 0) == pytest.approx(left, abs=1)


async def test_a_port_is_dialled_by_the_network(tmp_path: Path) -> None:
    async def upper(stream: trio.SocketStream) -> None:
        whole = b""
        async for data in stream:
            whole += data
        await stream.send_all(whole.upper())

    async with running(tmp_path) as (node, _, hypervisor, id):
        hypervisor.serve_in_guest(id, 7, upper)
        with trio.fail_after(20):
            async with node.guest_stream(LOCAL_ADMIN, "one", DialPort(port=7)) as stream:
                await stream.send(Input(data=b"words", offset=0))
                await stream.send(Input(data=b"words more", offset=0))
                await stream.send(InputEnd())
                assert await stream.receive() == Output(offset=0, data=b"WORDS MORE")
                assert await stream.receive() == OutputEnd()
                assert await stream.receive() == Finished()
            with pytest.raises(GuestUnreachable):
                async with node.guest_stream(LOCAL_ADMIN, "one", DialPort(port=8)):
                    pass
