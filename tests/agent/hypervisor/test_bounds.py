"""Each bound of the hypervisor package: what it lets through, and what it stops."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest
import trio
import trio.testing

from twinshare.agent.hypervisor.libvirt import disk_export, guest_streams, inspection
from twinshare.agent.hypervisor.libvirt.connection import LibvirtConnection
from twinshare.agent.hypervisor.libvirt.lanes import Lane, Lanes
from twinshare.agent.hypervisor.libvirt.pool import ConnectionPool
from twinshare.agent.hypervisor.sandbox.client import SupervisorClient
from twinshare.agent.hypervisor.sandbox.connection import request
from twinshare.agent.hypervisor.sandbox.egress import Egress
from twinshare.agent.hypervisor.sandbox.spawn import program
from twinshare.protocols.errors import DeadlineExceeded, HypervisorDown, Unsupported


@contextmanager
def blocked_threads() -> Iterator[tuple[Callable[[], None], list[int]]]:
    """Work that lasts until the block ends, and one entry for each thread that does it."""
    release, running = threading.Event(), list[int]()

    def work() -> None:
        running.append(1)
        release.wait()

    try:
        yield work, running
    finally:
        release.set()


@pytest.mark.parametrize(("lane", "threads"), [(Lane.QUICK, 4), (Lane.SLOW, 16), (Lane.RESCUE, 4)])
async def test_a_lane_runs_so_many_calls_at_once(lane: Lane, threads: int) -> None:
    lanes = Lanes(dict.fromkeys(Lane, 60.0))
    with blocked_threads() as (work, running):
        async with trio.open_nursery() as nursery:
            for _ in range(threads + 3):
                nursery.start_soon(lanes.run, lane, work)
            with trio.fail_after(20):
                while len(running) < threads:
                    await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(running) == threads
            for other in set(Lane) - {lane}:
                assert await lanes.run(other, lambda: 7) == 7
            nursery.cancel_scope.cancel()


async def test_a_call_is_given_up_after_its_lanes_timeout() -> None:
    with blocked_threads() as (work, _), pytest.raises(DeadlineExceeded), trio.fail_after(20):
        await Lanes({Lane.QUICK: 0.05}).run(Lane.QUICK, work)


async def test_a_call_waits_two_seconds_for_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    connection = LibvirtConnection("test:///default", lambda kind, id, details: None)
    connection.fail("it burns")
    begin = trio.current_time()
    with pytest.raises(HypervisorDown, match="it burns"):
        await connection.pool()
    assert trio.current_time() - begin == 2.0


def test_so_many_idle_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []

    def fake_open(uri: str) -> Any:
        return SimpleNamespace(isAlive=lambda: True, close=lambda: closed.append(1))

    monkeypatch.setattr(libvirt, "open", fake_open)
    pool = ConnectionPool("qemu:///x", None)
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(pool.connection())
    assert len(closed) == 4
    pool.close()
    assert len(closed) == 12


def test_a_new_forward_takes_the_place_of_another_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"127.64.0.{number % 250 + 1}", 20000 + number, number + 1) for number in range(256)]

    def monitor(domain: object, line: str) -> str:
        match line.split()[0]:
            case "info":
                table = (
                    f"  TCP[HOST_FORWARD]  9  {host} {port}  10.0.2.15 {guest}  0 0\n" for host, port, guest in rows
                )
                return "Hub -1 (hostnet0):\n" + "".join(table)
            case "hostfwd_remove":
                host, port = line.split("tcp:")[1].split(":")
                rows[:] = [row for row in rows if row[:2] != (host, int(port))]
            case "hostfwd_add":
                host, _, guest = line.split("tcp:")[1].split(":")
                rows.append((host, 40000, int(guest.removeprefix("-").split("-")[-1])))
        return ""

    monkeypatch.setattr(guest_streams, "_command", monitor)
    host, port = guest_streams.open_forward(cast(libvirt.virDomain, None), "hostnet0", 9999)
    assert (port, host.startswith("127.")) == (40000, True)
    assert len(rows) == 256


def test_a_screen_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    stream = SimpleNamespace(
        recv=lambda size: b"x" * size, finish=lambda: ended.append("finish"), abort=lambda: ended.append("abort")
    )
    domain = SimpleNamespace(
        isActive=lambda: True,
        state=lambda: (libvirt.VIR_DOMAIN_RUNNING, 0),
        connect=lambda: SimpleNamespace(newStream=lambda flags: stream),
        screenshot=lambda stream, screen, flags: "image/png",
    )
    with pytest.raises(Unsupported, match="too large"):
        inspection.take_screenshot(cast(libvirt.virDomain, domain))
    assert ended == ["abort"]


def test_a_guest_is_thawed_twice_at_most_and_also_after_a_failed_freeze() -> None:
    calls: list[str] = []

    def failing(name: str) -> Callable[..., None]:
        def call(*_: object) -> None:
            calls.append(name)
            raise libvirt.libvirtError("the agent does not answer")

        return call

    domain = SimpleNamespace(
        agentSetResponseTimeout=lambda timeout, flags: None,
        fsFreeze=failing("freeze"),
        fsThaw=failing("thaw"),
        UUIDString=lambda: "a",
    )
    disk_export._freeze(cast(libvirt.virDomain, domain))
    disk_export._thaw(cast(libvirt.virDomain, domain))
    assert calls == ["freeze", "thaw", "thaw"]


async def test_egress_that_dies_at_once_is_started_ever_more_seldom(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SimpleNamespace(record=SimpleNamespace(egress=None))
    egress, starts = Egress(cast(SupervisorClient, client)), list[float]()

    async def die() -> None:
        starts.append(trio.current_time())

    monkeypatch.setattr(egress, "_run_once", die)
    with trio.move_on_after(600):
        await egress.run()
    assert 600 / 45 < len(starts) < 60
    assert min(later - earlier for earlier, later in zip(starts[-6:], starts[-5:], strict=False)) >= 15


async def test_of_a_reply_four_descriptors_are_taken() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
        socket.send_fds(theirs, [b"{}"], [theirs.fileno()] * 20)
        with pytest.raises(HypervisorDown, match=r"sent [1-5] descriptors, not 0"):  # the kernel rounds up the space
            await request(ours, {"do": "socket"})
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_a_supervisor_that_nobody_connects_to_ends(tmp_path: Path) -> None:
    command = program("supervisor", "main", ["{}"])
    code = command[4].replace("import main; main()", "import Supervisor, __name__ as name; import sys, socket; ")
    code += (
        "module = sys.modules[name]; module._FIRST_CONNECTION_TIMEOUT = 300; listener = socket.socket(socket.AF_UNIX); "
        "listener.bind(sys.argv[1]); listener.listen(); Supervisor(listener).serve(); print('ended')"
    )
    done = subprocess.run(
        [sys.executable, *command[1:4], code, str(tmp_path / "s")], capture_output=True, timeout=8, check=True
    )
    assert done.stdout == b"ended\n"


async def test_a_full_backlog_of_qemu_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        dialer, dialled = guest_streams.GuestDialer(_no_dial, os.geteuid()), list[trio.SocketStream]()

        async def dial() -> None:
            dialled.append(await dialer._dial_socket(path, "guest channel"))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                await trio.sleep(0.1)
                assert not dialled
                accepted = listener.accept()[0]
        with accepted, listener.accept()[0] as second:
            second.sendall(b"hello")
            async with dialled[0] as stream:
                assert await stream.receive_some(5) == b"hello"


async def _no_dial(port: int, host: str) -> trio.SocketStream:
    raise ConnectionRefusedError
