"""Guests under load and in trouble: many sessions, much output, long command lines, bytes that are no text, reboots."""

from __future__ import annotations

import os
import random
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import spec, vms_of
from tests.agent.test_guest_files import read, write
from tests.agent.test_guest_sessions import OPERATOR, VIEWER, guests_of, read_all, run, running
from tests.stopwatch import within
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN, Caller
from twinshare.protocols.errors import Forbidden, GuestUnreachable, Overloaded, TwinshareError, WrongState
from twinshare.protocols.guest import MAX_COMMAND, ExecRequest, SessionState
from twinshare.protocols.guest_service import GuestService
from twinshare.protocols.guest_stream import (
    AttachSession,
    Finished,
    Input,
    InputEnd,
    Output,
    ReadFile,
    WriteFile,
)

SESSIONS = 100
GIB = 1 << 30


async def test_a_hundred_sessions_at_once_have_their_own_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, guests, _, _):
        heard: dict[int, bytes] = {}

        async def one(number: int) -> None:
            request = ExecRequest(command=["cat"], detach=True, interactive=True)
            session = (await guests.exec_vm("one", request)).session
            content = random.Random(number).randbytes(50_000)
            async with node.guest_stream(LOCAL_ADMIN, "one", AttachSession(session=session)) as stream:
                await started(number)
                await stream.send(Input(data=content))
                await stream.send(InputEnd())
                whole = b""
                while not isinstance(message := await stream.receive(), Finished):
                    whole += message.data if isinstance(message, Output) else b""
                heard[number] = whole

        waiting, all_run = set(range(SESSIONS)), trio.Event()

        async def started(number: int) -> None:
            waiting.discard(number)
            if not waiting:
                all_run.set()
            await all_run.wait()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(SESSIONS):
                    nursery.start_soon(one, number)
        assert heard == {number: random.Random(number).randbytes(50_000) for number in range(SESSIONS)}


async def test_more_sessions_than_are_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinshare.agent.guest.vm_guest.MAX_RUNNING", 3)
    async with running(tmp_path) as (_, guests, _, _):
        for _ in range(3):
            last = await run(guests, "sleep", "1000", detach=True)
        with pytest.raises(Overloaded, match="3 sessions"):
            await run(guests, "true")
        await guests.end_vm_session("one", last.session)
        assert (await run(guests, "true")).exit_code == 0


@pytest.mark.system
async def test_a_gibibyte_of_output_fills_neither_disk_nor_memory(tmp_path: Path) -> None:
    """Nobody reads it: the last 4 MiB are kept; one who reads it all gets it all."""
    async with running(tmp_path) as (node, guests, _, _):
        before = memory()
        session = (await run(guests, "head", "-c", str(GIB), "/dev/zero", detach=True)).session
        with trio.fail_after(240):
            while (found := await guests.get_session("one", session)).state is SessionState.RUNNING:
                await trio.sleep(0.1)
                assert sum(file.stat().st_size for file in (tmp_path / "sessions").glob("*/*")) < 10 << 20
        assert (found.offset, found.exit_code) == (GIB, 0)
        assert found.first_offset > GIB - (10 << 20)
        assert memory() - before < 30 << 20
        whole, _ = await read_all(node, session)
        assert len(whole) == GIB - found.first_offset


def memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


async def test_the_longest_command_lines_arrive_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        count = "import sys; print(len(sys.argv), sum(map(len, sys.argv)))"
        base = ["python3", "-c", count]
        left = MAX_COMMAND - sum(len(word) + 1 for word in base)
        one = await run(guests, *base, "x" * (left - 1))
        assert (one.exit_code, one.stdout) == (0, f"2 {left - 1 + 2}\n")
        many = await run(guests, *base, *["x"] * 4000)
        assert (many.exit_code, many.stdout.split()[0]) == (0, "4001")
        env = await run(guests, "sh", "-c", "echo ${#LONG}", env={"LONG": "x" * (MAX_COMMAND - 6)})
        assert (env.exit_code, env.stdout) == (0, f"{MAX_COMMAND - 6}\n")


def make_folder(root: Path, name: bytes) -> bytes:
    """A folder in the guest's."""
    folder = os.fsencode(next(root.rglob("guest"))) + b"/" + name
    os.mkdir(folder)  # noqa: PTH102 - as bytes
    return folder


async def test_bytes_that_are_no_text_arrive_as_they_are(tmp_path: Path) -> None:
    def coded(*words: bytes) -> list[str]:
        return [b64encode(word).decode() for word in words]

    async with running(tmp_path) as (_, guests, _, _):
        folder = make_folder(tmp_path, b"\xff dir")
        request = ExecRequest(
            command_base64=coded(b"sh", b"-c", b'printf %s: "$0" "$V" "$PWD"', b"\xfe\x80"),
            env_base64=coded(b"V=\xff\xfe"),
            workdir_base64=coded(folder)[0],
        )
        with trio.fail_after(30):
            done = await guests.exec_vm("one", request)
        assert done.stdout_bytes == b"\xfe\x80:\xff\xfe:" + folder + b":"
        assert (done.stdout, done.exit_code) == ("", 0)


async def test_a_command_that_daemonizes_ends_and_its_daemon_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        daemon = "trap '' HUP INT TERM; while [ ! -e stop ]; do sleep 0.05; done; touch stopped"
        done = await run(guests, "sh", "-c", f"setsid sh -c '{daemon.replace(chr(39), chr(34))}' & echo begun")
        assert (done.stdout, done.exit_code) == ("begun\n", 0)
        await run(guests, "touch", "stop")
        with within(10):
            while (await run(guests, "test", "-e", "stopped")).exit_code:
                await trio.sleep(0.05)


async def test_a_command_that_ignores_signals_is_killed_at_its_timeout(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, guests, _, _):
        done = await run(guests, "sh", "-c", "trap '' HUP INT TERM; echo on; while :; do sleep 0.1; done", timeout=1)
        assert (done.stdout, done.exit_code) == ("on\n", 124)


async def half_written(
    node: Node, request: WriteFile, content: bytes, trouble: Callable[[], Awaitable[None]]
) -> TwinshareError:
    """What a copy ends with whose guest is in trouble in the middle."""
    async with node.guest_stream(LOCAL_ADMIN, "one", request) as stream:
        await stream.send(Input(data=content[: len(content) // 2]))
        await trouble()
        try:
            with trio.fail_after(20):
                await stream.send(Input(data=content[len(content) // 2 :]))
                await stream.send(InputEnd())
                while not isinstance(await stream.receive(), Finished):
                    pass
        except TwinshareError as error:
            return error
    raise AssertionError("the copy ended well")


async def test_a_guest_that_is_rebooted_in_the_middle_of_a_copy(tmp_path: Path) -> None:
    """The error says so; the same upload goes on in the guest's next run, where its part still is."""
    content = random.Random(5).randbytes(2_000_000)
    async with running(tmp_path) as (node, _, hypervisor, id):
        request = WriteFile(path=b"file", size=len(content), upload="cd" * 8)

        async def reboot() -> None:
            hypervisor.reboot(id)

        error = await half_written(node, request, content, reboot)
        assert isinstance(error, GuestUnreachable)
        assert "restarted" in error.message
        done = await write(node, request, content)
        assert done.file is not None
        assert done.file.size == len(content)


async def test_a_guest_that_is_killed_in_the_middle_of_a_copy(tmp_path: Path) -> None:
    content = bytes(2_000_000)
    async with running(tmp_path) as (node, _, hypervisor, id):

        async def kill() -> None:
            await hypervisor.destroy(id)

        error = await half_written(node, WriteFile(path=b"file"), content, kill)
        assert isinstance(error, WrongState)
        assert "has stopped" in error.message


async def test_a_copy_waits_for_a_guest_that_is_paused(tmp_path: Path) -> None:
    content = random.Random(6).randbytes(2_000_000)
    async with running(tmp_path) as (node, _, _, _), trio.open_nursery() as nursery:

        async def resume_later() -> None:
            await trio.sleep(0.5)
            await vms_of(node).resume_vm("one")

        async with node.guest_stream(LOCAL_ADMIN, "one", WriteFile(path=b"file")) as stream:
            await stream.send(Input(data=content[:1_000_000]))
            await vms_of(node).pause_vm("one")
            nursery.start_soon(resume_later)
            with trio.fail_after(20):
                await stream.send(Input(data=content[1_000_000:]))
                await stream.send(InputEnd())
                assert isinstance(await stream.receive(), Finished)
        assert (await read(node, ReadFile(path=b"file")))[0] == content


async def test_an_operator_has_its_own_vms_and_a_viewer_none(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, _, _):
        await vms_of(node, OPERATOR).create_vm(spec("mine", start=True))

        async def ask(caller: Caller, vm: str) -> object:
            guests: GuestService = guests_of(node, caller)
            with trio.fail_after(30):
                return (await guests.exec_vm(vm, ExecRequest(command=["true"]))).exit_code

        assert await ask(OPERATOR, "mine") == 0
        assert await ask(LOCAL_ADMIN, "mine") == 0
        for caller, vm in ((OPERATOR, "one"), (VIEWER, "mine"), (VIEWER, "one")):
            with pytest.raises(Forbidden):
                await ask(caller, vm)
