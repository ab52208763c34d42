"""The guest program dies while its guest runs on: sessions end with a reason, and all works when it is back."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.test_guest_sessions import run as run_command
from tests.agent.test_guest_sessions import running
from tests.leaks import open_files
from twinshare.agent.guest import silence, vm_guest
from twinshare.agent.guest.silence import SilenceWatch
from twinshare.agent.guest_program.program.command import Command
from twinshare.agent.guest_program.program.stream import Program
from twinshare.agent.hypervisor.domain_xml import GUEST_CHANNEL, guest_channel_is_open
from twinshare.protocols.errors import GuestUnreachable
from twinshare.protocols.guest import ExecRequest, SessionState
from twinshare.protocols.guest_channel import ANNOUNCE, ZEROS, FrameReader, ProgramRestarted
from twinshare.protocols.guest_service import GuestService


async def until_lost(guests: GuestService, session: str) -> str:
    """The reason for which a session was lost."""
    with trio.fail_after(60):
        while (found := await guests.get_session("one", session)).state is SessionState.RUNNING:
            await trio.sleep(0.02)
    assert found.state is SessionState.LOST
    assert found.reason
    return found.reason


async def test_a_program_that_dies_ends_its_sessions_and_works_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "SILENCE_FIRST", 0.1)
    monkeypatch.setattr(vm_guest, "READY_WITHIN", 0.5)
    async with running(tmp_path) as (_, guests, hypervisor, id):
        started = await run_command(guests, "sleep", "1000", detach=True)
        hypervisor.end_program(id)
        assert "has ended" in await until_lost(guests, started.session)
        assert not (await guests.show_guest("one")).ready
        with pytest.raises(GuestUnreachable, match="systemctl restart twinshare-guest"):
            await run_command(guests, "true")
        hypervisor.start_program(id)
        monkeypatch.setattr(vm_guest, "READY_WITHIN", 60)
        assert (await run_command(guests, "echo", "again")).stdout == "again\n"


async def test_a_command_for_a_program_that_has_died_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody had a session, so nobody has noticed."""
    monkeypatch.setattr(silence, "SILENCE_FIRST", 0.1)
    async with running(tmp_path) as (_, guests, hypervisor, id):
        await run_command(guests, "true")
        hypervisor.end_program(id)
        with trio.fail_after(60), pytest.raises(GuestUnreachable, match="has ended"):
            await guests.exec_vm("one", ExecRequest(command=["true"]))


async def test_sessions_of_a_guest_that_is_silent_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE_FIRST", 0.02)
    monkeypatch.setattr(silence, "SILENCE_LONGEST", 0.02)
    looked, really = trio.Event(), SilenceWatch._is_open
    times = 0

    async def is_open(self: SilenceWatch) -> bool:
        nonlocal times
        times += 1
        if times == 3:
            looked.set()
        return await really(self)

    monkeypatch.setattr(SilenceWatch, "_is_open", is_open)
    async with running(tmp_path) as (_, guests, _, _):
        started = await run_command(guests, "sleep", "1000", detach=True)
        with trio.fail_after(60):
            await looked.wait()
        assert (await guests.get_session("one", started.session)).state is SessionState.RUNNING


def test_a_program_that_starts_on_a_connection_breaks_no_protocol() -> None:
    with pytest.raises(ProgramRestarted):
        FrameReader().feed(ZEROS + ANNOUNCE)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (f"<target type='virtio' name='{GUEST_CHANNEL}' state='connected'/>", True),
        (f"<target type='virtio' name='{GUEST_CHANNEL}' state='disconnected'/>", False),
        (f"<target type='virtio' name='{GUEST_CHANNEL}'/>", True),
        ("<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>", None),
    ],
)
def test_libvirt_says_whether_a_process_in_the_guest_has_the_port_open(target: str, expected: bool | None) -> None:
    xml = f"<domain><devices><channel type='unix'>{target}</channel></devices></domain>"
    assert guest_channel_is_open(xml) is expected


class _NoLoop(Program):
    """No descriptor of a command that does not start is ever watched."""

    def unwatch(self, fd: int) -> None:
        pass


@pytest.mark.parametrize(("terminal", "lacking"), [(False, "fork"), (False, "pipe"), (True, "fork"), (True, "openpty")])
def test_a_command_that_cannot_be_started_leaves_nothing_open(
    terminal: bool, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = iter(range(2 if lacking == "pipe" else 0))
    plain = getattr(os, lacking)

    def fail() -> Any:
        if next(usable, None) is not None:
            return plain()
        raise OSError(errno.EAGAIN, "no more")

    monkeypatch.setattr(os, lacking, fail)
    monkeypatch.delattr(os, "posix_spawn")
    request = {
        "user": "", "env": {}, "argv": [b"true"], "workdir": b"", "terminal": terminal, "rows": 24, "columns": 80,
    }  # fmt: skip
    before = sorted(open_files())
    command = Command(_NoLoop(), 1)
    with pytest.raises(OSError, match="no more"):
        command.start(request)
    command.close()
    assert sorted(open_files()) == before
