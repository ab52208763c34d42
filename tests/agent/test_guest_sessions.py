"""Commands in guests: what they write, how they end, and what survives cuts, restarts and slow readers.

The guest is the guest program as a process of this machine, behind the in-memory hypervisor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from msgspec import structs

from tests.agent.nodes import open_test_node, spec, vms_of
from tests.stopwatch import within
from twinshare.agent.guest.output_log import open_output_log
from twinshare.agent.guest.session import HostedSession, SessionRecord, load_sessions
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import (
    Forbidden,
    GuestRefused,
    GuestUnreachable,
    SessionNotFound,
    TwinshareError,
    WrongState,
)
from twinshare.protocols.guest import ExecRequest, ExecResult, SessionState
from twinshare.protocols.guest_channel import EndReply
from twinshare.protocols.guest_service import GuestService
from twinshare.protocols.guest_stream import (
    AttachSession,
    Channel,
    Finished,
    Input,
    InputEnd,
    Output,
    Resize,
    SendSignal,
)
from twinshare.protocols.table import stub

OPERATOR = Caller(principal="token:ci", role=Role.OPERATOR)
VIEWER = Caller(principal="token:eyes", role=Role.VIEWER)


def guests_of(node: Node, caller: Caller = LOCAL_ADMIN) -> GuestService:
    return cast("GuestService", stub(GuestService, partial(node.dispatcher.call, caller)))


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Node, GuestService, MemoryHypervisor, str]]:
    """A node with the running VM `one`, whose guest runs the program, and its id."""
    async with open_test_node(folder, uri="fake://?guest_program=1") as (node, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        yield node, guests_of(node), hypervisor, made.id


async def run(guests: GuestService, *command: str, **fields: object) -> ExecResult:
    with trio.fail_after(30):
        return await guests.exec_vm("one", ExecRequest(command=list(command), **fields))  # type: ignore[arg-type]  # any


async def read_all(node: Node, session: str, offset: int | None = None, peer: str = "local") -> tuple[bytes, Finished]:
    """Attach and read to the end."""
    whole = b""
    with trio.fail_after(60):
        async with node.guest_stream(LOCAL_ADMIN, "one", AttachSession(session=session, offset=offset), peer) as stream:
            while True:
                message = await stream.receive()
                if isinstance(message, Finished):
                    return whole, message
                assert isinstance(message, Output)
                whole += message.data


async def test_a_command_runs_in_the_guest(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        done = await run(guests, "sh", "-c", "echo x; echo y >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == ("x\n", "y\n", 3)
        done = await run(guests, "cat", stdin="some words")
        assert (done.stdout, done.exit_code) == ("some words", 0)
        done = await run(guests, "sh", "-c", 'echo "$GREETING from $PWD"', env={"GREETING": "hello"}, workdir="/usr")
        assert done.stdout == "hello from /usr\n"
        done = await run(guests, "printf", r"\377", stdin="")
        assert (done.stdout, done.stdout_base64) == ("", "/w==")


async def test_sessions_of_a_former_life_are_loaded_by_a_thread(tmp_path: Path) -> None:
    record = SessionRecord(id="0" * 16, number=1, instance=b"", owner="local", command=["true"], started_at=0.0)
    HostedSession(tmp_path, record, open_output_log(tmp_path, record.id)).save()
    (found,) = await trio.to_thread.run_sync(load_sessions, tmp_path)
    assert found.record == record


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        done = await run(guests, "no-such-program")
        assert (done.exit_code, done.stderr) == (127, "no-such-program: No such file or directory\n")
        done = await run(guests, "/etc/passwd")
        assert done.exit_code == 126
        done = await run(guests, "true", workdir="/no-such-folder")
        assert done.exit_code == 127
        assert "/no-such-folder" in done.stderr
        with pytest.raises(GuestRefused, match=r"^no user 'nobody-of-that-name'$"):
            await run(guests, "true", user="nobody-of-that-name")


async def test_how_a_command_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        done = await run(guests, "sh", "-c", "kill -9 $$")
        assert (done.exit_code, done.signal) == (None, "KILL")
        done = await run(guests, "sh", "-c", "trap 'exit 5' TERM; sleep 100 & wait", timeout=1)
        assert done.exit_code == 124
        # One that leaves something in the background ends when it ends itself, with all that it wrote.
        done = await run(guests, "sh", "-c", "(trap '' HUP; sleep 100) & seq 10000 | tail -n 1; echo end")
        assert (done.stdout, done.exit_code) == ("10000\nend\n", 0)


async def test_only_the_owner_and_admins_get_in(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, _, _):
        for caller in (OPERATOR, VIEWER):
            with pytest.raises(Forbidden):
                await run(guests_of(node, caller), "true")
            with pytest.raises(Forbidden):
                await guests_of(node, caller).list_vm_sessions("one")
            with pytest.raises(Forbidden):
                async with node.guest_stream(caller, "one", AttachSession(session="0" * 16)):
                    pass


async def test_a_terminal_session(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        request = ExecRequest(command=["sh"], terminal=True, interactive=True, detach=True, rows=10, columns=20)
        started = await guests.exec_vm("one", request)
        async with node.guest_stream(LOCAL_ADMIN, "one", AttachSession(session=started.session)) as stream:
            await stream.send(Resize(columns=132, rows=43))
            await stream.send(Input(data=b"stty size; echo so-$((6*7)); exit 4\n"))
            whole = b""
            with within(10):
                while not isinstance(message := await stream.receive(), Finished):
                    assert isinstance(message, Output)
                    assert message.channel is Channel.STDOUT
                    whole += message.data
        assert b"43 132" in whole
        assert b"so-42" in whole
        assert message.exit_code == 4


async def test_signals_and_stdin_of_an_attached_session(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        request = ExecRequest(command=["sh", "-c", "trap 'echo got; exit 7' INT; cat; while :; do sleep 0.05; done"],
                              interactive=True, detach=True)  # fmt: skip
        started = await guests.exec_vm("one", request)
        async with node.guest_stream(LOCAL_ADMIN, "one", AttachSession(session=started.session)) as stream:
            assert stream.opened.input_offset == 0
            await stream.send(Input(data=b"ab", offset=0))
            await stream.send(Input(data=b"abcd", offset=0))  # of which two bytes are there already
            await stream.send(InputEnd())
            with within(10):
                whole = b""
                while len(whole) < 4:
                    message = await stream.receive()
                    assert isinstance(message, Output)
                    whole += message.data
                assert whole == b"abcd"
                await stream.send(SendSignal(signal="INT"))
                assert await stream.receive() == Output(offset=4, data=b"got\n")
                assert await stream.receive() == Finished(exit_code=7)
        found = await guests.get_session("one", started.session)
        assert (found.state, found.exit_code, found.offset, found.input_offset) == (SessionState.ENDED, 7, 8, 4)


async def test_input_of_two_clients_is_ordered_and_none_is_taken_for_the_others(tmp_path: Path) -> None:
    """Who sends at an offset that another client has used meanwhile is refused, and goes on when it attaches again."""
    async with running(tmp_path) as (node, guests, _, _):
        started = await guests.exec_vm("one", ExecRequest(command=["cat"], interactive=True, detach=True))
        asked = AttachSession(session=started.session)
        async with node.guest_stream(LOCAL_ADMIN, "one", asked) as first:
            async with node.guest_stream(LOCAL_ADMIN, "one", asked) as second:
                await first.send(Input(data=b"ab", offset=0))
                with pytest.raises(WrongState, match="another client has sent input"):
                    await second.send(Input(data=b"xy", offset=0))
            async with node.guest_stream(LOCAL_ADMIN, "one", asked) as second:
                assert second.opened.input_end == 2
                await second.send(Input(data=b"xy", offset=2))
                await first.send(Input(data=b"ab", offset=0))  # it has been taken, which harms nobody
                with pytest.raises(WrongState, match="now at 4"):
                    await first.send(Input(data=b"cd", offset=2))
                await first.send(Input(data=b"z"))  # wherever it comes
                await second.send(InputEnd())
        whole, _ = await read_all(node, started.session)
        assert whole == b"abxyz"


async def test_a_client_that_attaches_again_is_not_taken_for_the_one_that_typed_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        started = await guests.exec_vm("one", ExecRequest(command=["cat"], interactive=True, detach=True))
        asked = AttachSession(session=started.session)
        async with node.guest_stream(LOCAL_ADMIN, "one", asked) as stream:
            again = structs.replace(asked, writer=stream.opened.writer)
            await stream.send(Input(data=b"ab", offset=0))
        async with node.guest_stream(LOCAL_ADMIN, "one", asked) as other:
            await other.send(Input(data=b"xy", offset=2))
        async with node.guest_stream(LOCAL_ADMIN, "one", again) as stream:
            assert stream.opened.input_offset <= 2
            assert stream.opened.input_end == 4
            await stream.send(Input(data=b"ab", offset=0))  # it has been taken
            with pytest.raises(WrongState, match="another client has sent input"):
                await stream.send(Input(data=b"cd", offset=2))
        async with node.guest_stream(LOCAL_ADMIN, "one", asked) as stream:
            again = structs.replace(asked, writer=stream.opened.writer)
            await stream.send(Input(data=b"cd", offset=4))
        async with node.guest_stream(LOCAL_ADMIN, "one", again) as stream:
            await stream.send(Input(data=b"cdef", offset=4))  # half of it has been taken
            await stream.send(InputEnd())
        whole, _ = await read_all(node, started.session)
        assert whole == b"abxycdef"


async def test_a_large_input_of_one_client_is_not_parted_by_another(tmp_path: Path) -> None:
    """The guest reads nothing until both have begun: the first one waits in the middle of its message."""
    size = 1 << 20
    async with running(tmp_path) as (node, guests, _, _):
        command = ["sh", "-c", "echo ready; read go <pipe; cat"]
        await run(guests, "mkfifo", "pipe")
        started = await guests.exec_vm("one", ExecRequest(command=command, interactive=True, detach=True))
        asked = AttachSession(session=started.session)
        async with (
            node.guest_stream(LOCAL_ADMIN, "one", asked) as first,
            node.guest_stream(LOCAL_ADMIN, "one", asked) as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(first.send, Input(data=b"a" * size))
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.start_soon(second.send, Input(data=b"b" * size))
            await trio.testing.wait_all_tasks_blocked(0.1)
            await run(guests, "sh", "-c", "echo go >pipe")
            whole = b""
            with trio.fail_after(60):
                while len(whole) < len("ready\n") + 2 * size:
                    message = await first.receive()
                    whole += message.data if isinstance(message, Output) else b""
        assert whole == b"ready\n" + b"a" * size + b"b" * size


async def test_a_session_is_killed_and_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        started = await run(guests, "sh", "-c", "trap '' TERM HUP; echo $$; sleep 1000", detach=True)
        async with node.guest_stream(LOCAL_ADMIN, "one", AttachSession(session=started.session)) as stream:
            first = await stream.receive()
            assert isinstance(first, Output)
            pid = int(first.data)
            await guests.end_vm_session("one", started.session)
            with trio.fail_after(60), pytest.raises(GuestUnreachable):
                await stream.receive()
        with trio.fail_after(60):
            with suppress(FileNotFoundError, ProcessLookupError):
                while await trio.Path(f"/proc/{pid}/cmdline").read_bytes():
                    await trio.sleep(0.01)
        with pytest.raises(SessionNotFound):
            await guests.get_session("one", started.session)
        assert not list((tmp_path / "sessions").glob("*/*"))


async def test_a_paused_or_stopped_vm_is_not_asked(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, hypervisor, id):
        started = await run(guests, "sleep", "1000", detach=True)
        await vms_of(node).pause_vm("one")
        with pytest.raises(WrongState, match="paused"):
            await run(guests, "true")
        await vms_of(node).resume_vm("one")
        await hypervisor.destroy(id)
        with trio.fail_after(60):
            while (await guests.get_session("one", started.session)).state is SessionState.RUNNING:
                await trio.sleep(0.01)
        assert (await guests.get_session("one", started.session)).state is SessionState.LOST


async def test_big_output_is_bounded_where_it_is_collected_and_whole_where_it_is_read(tmp_path: Path) -> None:
    size = 20 << 20
    async with running(tmp_path) as (node, guests, _, _):
        done = await run(guests, "head", "-c", str(size), "/dev/zero")
        assert done.truncated
        assert len(done.stdout) == 256 << 10
        started = await run(guests, "head", "-c", str(size), "/dev/zero", detach=True)
        assert isinstance(started.session, str)
        held = ExecRequest(command=["head", "-c", str(size), "/dev/zero"], interactive=True, detach=True)
        session = (await guests.exec_vm("one", held)).session
        whole, _ = await read_all(node, session)
        assert len(whole) == size


async def test_a_guest_without_a_channel_says_so(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        with pytest.raises(GuestUnreachable) as refused:
            await run(guests_of(node), "true")
        assert isinstance(refused.value, TwinshareError)
        assert refused.value.status == 409


async def test_a_session_that_is_removed_leaves_no_file(tmp_path: Path) -> None:
    """Its state and its output are written by other threads, which may be late."""
    record = SessionRecord(id="0" * 16, number=1, instance=b"", owner="local", command=["true"], started_at=0.0)
    session = HostedSession(tmp_path, record, open_output_log(tmp_path, record.id))
    session.save()
    session.remove()
    session.save()
    await session.complete([(1, b"late")], EndReply(offset=4, code=0))
    assert not list(await trio.Path(tmp_path).iterdir())
