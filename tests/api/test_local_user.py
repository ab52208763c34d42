"""Who sits at the far end of a loopback connection: only this node's own user and root need no token."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.api.served import Served, served
from twinshare.agent import guest_sockets, processes, sockets
from twinshare.agent.guest_sockets import SocketOwners, held_by_guest, held_by_recent_client
from twinshare.agent.node import Node
from twinshare.agent.sockets import FarSocket, far_socket, is_own

lists_children = pytest.mark.skipif(
    not os.access("/proc/thread-self/children", os.R_OK), reason="this kernel lists no children"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")

# In plain bash, which every user can run.
ASK = r"""
exec 3<>/dev/tcp/{host}/{port}
printf 'POST /api/p2p/stop HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
cat <&3
"""


@contextmanager
def connected(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's two ends: the client's and the server's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
    ):
        server, _ = listener.accept()
        with server:
            yield client, server


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("way", [sockets._ask_kernel, sockets._read_table])
def test_the_kernel_knows_the_far_end(host: str, way: Callable[..., FarSocket | None]) -> None:
    with connected(host) as (client, server):
        ends = server.getpeername()[:2], server.getsockname()[:2]
        expected = FarSocket(uid=os.geteuid(), inode=os.fstat(client.fileno()).st_ino)
        assert way(*ends) == expected
        assert far_socket(*ends) == expected
        assert far_socket((ends[0][0], 1), ends[1]) is None


def test_a_socket_that_was_closed_is_nobodys() -> None:
    """The kernel calls root the owner of a socket that its process has closed."""
    with connected() as (client, server):
        ends = server.getpeername()[:2], server.getsockname()[:2]
        client.close()
        assert far_socket(*ends) is None


def test_without_socket_diagnosis_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(sockets, "_ask_kernel", refuse)
    with connected() as (client, server):
        found = far_socket(server.getpeername()[:2], server.getsockname()[:2])
        assert found == FarSocket(uid=os.geteuid(), inode=os.fstat(client.fileno()).st_ino)


def test_a_socket_of_a_guest_process_is_recognised(tmp_path: Path) -> None:
    """By its name, or because the node says so."""
    qemu = tmp_path / "qemu-system-x86"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", qemu)
    with connected() as (client, _):
        inode = os.fstat(client.fileno()).st_ino
        assert not held_by_guest(inode)
        assert held_by_guest(inode, known=[os.getpid()])
        with subprocess.Popen([qemu, "60"], pass_fds=[client.fileno()]) as process:
            try:
                while not Path(f"/proc/{process.pid}/comm").read_text().startswith("qemu"):
                    os.sched_yield()  # it has its name a moment after it has begun
                assert held_by_guest(inode)
            finally:
                process.kill()


@needs_root
def test_a_guest_process_that_hides_its_files_is_assumed_to_hold_what_nobody_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hidden(pid: int) -> set[int]:
        if pid == 1:
            raise PermissionError
        return {7} if pid == os.getpid() else set()

    monkeypatch.setattr(processes, "open_sockets", hidden)
    assert held_by_guest(8, known=[1])
    assert not held_by_guest(7, known=[1])


def test_only_new_processes_are_read_for_the_next_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of /proc for each connection was 15 ms with a thousand processes."""
    read: list[int] = []
    name = processes.name_of

    def noted(pid: int) -> str:
        read.append(pid)
        return name(pid)

    monkeypatch.setattr(processes, "name_of", noted)
    monkeypatch.setattr(guest_sockets, "_owners", SocketOwners())
    assert not held_by_guest(8)
    assert len(read) > 1
    read.clear()
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            assert not held_by_guest(8)
            assert process.pid in read
            assert os.getpid() not in read
        finally:
            process.kill()


@contextmanager
def client_process() -> Iterator[tuple[int, Callable[[], int]]]:
    """A client in a process of its own, and what gives the inode of a new socket of it.

    This process has too much open, and too many children, for what is said of a client.
    """
    program = (
        "import os, socket, sys\nkept = []\nfor _ in sys.stdin:\n"
        "    kept.append(socket.socket()); print(os.fstat(kept[-1].fileno()).st_ino, flush=True)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def connect() -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        try:
            yield process.pid, connect
        finally:
            process.kill()


def test_a_client_that_came_before_and_a_young_one_cost_no_look_at_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names are read anew every two seconds: 20 ms with a thousand processes, for who comes now and then."""
    owners = SocketOwners()
    monkeypatch.setattr(guest_sockets, "_owners", owners)
    youngest: list[int] = []
    # What else this machine starts meanwhile must not decide.
    monkeypatch.setattr(processes, "youngest", lambda _: youngest)
    with client_process() as (known, connect), client_process() as (young, connect_young):
        assert not held_by_guest(connect())
        assert owners._clients[0] == known
        read: list[int] = []
        plain = processes.name_of
        monkeypatch.setattr(processes, "name_of", lambda pid: read.append(pid) or plain(pid))  # type: ignore[func-returns-value]  # it is None
        monkeypatch.setattr(processes, "open_sockets", lambda pid: pytest.fail(f"the open files of {pid} are read"))
        owners._read_at = owners._searched_at = 0.0
        assert not held_by_guest(connect())
        youngest.append(young)
        assert not held_by_guest(connect_young())
        assert owners._clients[0] == young
    assert 0 < len(read) <= 64


def test_a_client_of_a_moment_ago_is_recognised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own files, name and children: 0.03 ms, in the event loop."""
    owners = SocketOwners()
    monkeypatch.setattr(guest_sockets, "_owners", owners)
    monkeypatch.setattr(owners, "NAMES_KEPT", 3600.0)
    with client_process() as (pid, connect):
        assert not held_by_recent_client(connect())
        assert not held_by_guest(connect())  # finds it among all processes
        assert not held_by_guest(connect())  # reads its family
        read: list[int] = []
        plain = processes.name_of
        monkeypatch.setattr(processes, "name_of", lambda pid: read.append(pid) or plain(pid))  # type: ignore[func-returns-value]  # it is None
        assert held_by_recent_client(connect())
        assert read == [pid]
        assert not held_by_recent_client(connect(), known=[pid])
        assert not held_by_recent_client(connect(), known=processes.ancestors(pid)[:1])
        assert not held_by_recent_client(8)


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("name_of", lambda pid: "qemu-system-x86"),
        ("children", lambda pid, thread: b"4000000 "),
        ("parent_and_start", lambda pid: (1, 8)),
        ("newest_sockets", lambda pid, files: iter(())),
    ],
)
def test_a_client_that_has_changed_since_is_looked_at_anew(
    monkeypatch: pytest.MonkeyPatch, what: str, changed: Callable[..., object]
) -> None:
    """It became another program, has a new child, or its number is another process's."""
    owners = SocketOwners()
    monkeypatch.setattr(guest_sockets, "_owners", owners)
    monkeypatch.setattr(owners, "NAMES_KEPT", 3600.0)
    with client_process() as (_, connect):
        assert not held_by_guest(connect())
        assert not held_by_guest(connect())
        assert held_by_recent_client(connect())
        monkeypatch.setattr(processes, what, changed)
        assert not held_by_recent_client(connect())


def test_the_names_of_a_clients_family_are_kept_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = SocketOwners()
    monkeypatch.setattr(guest_sockets, "_owners", owners)
    with client_process() as (pid, connect):
        assert not held_by_guest(connect())
        assert not held_by_guest(connect())
        read_at = owners._families[pid].read_at
        monkeypatch.setattr(time, "monotonic", lambda: read_at + 2.1)
        assert not held_by_recent_client(connect())
        monkeypatch.setattr(time, "monotonic", lambda: read_at + 1.9)
        assert held_by_recent_client(connect())


@lists_children
def test_all_children_of_a_process_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives a long list in pieces."""
    pid = os.getpid()
    with subprocess.Popen(["/bin/sleep", "60"]) as one, subprocess.Popen(["/bin/sleep", "60"]) as two:
        try:
            monkeypatch.setattr(processes, "_READ_SIZE", 8)
            assert {one.pid, two.pid} <= set(map(int, processes.children(pid, pid).split()))
        finally:
            one.kill()
            two.kill()


async def test_a_connection_of_a_recent_client_takes_no_worker_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "held_by_recent_client", lambda inode, known: known == (5,))
    monkeypatch.setattr(sockets, "held_by_guest", lambda inode, known: True)
    far = FarSocket(uid=os.geteuid(), inode=1)
    assert await sockets.is_own_program(far, [5])
    assert not await sockets.is_own_program(far, [6])
    assert not await sockets.is_own_program(FarSocket(uid=os.geteuid() + 1, inode=1), [5])


def test_the_youngest_process_is_among_the_last_numbers() -> None:
    for _ in range(20):  # a busy machine may start as many others in the same moment
        with subprocess.Popen(["/bin/true"]) as process:
            found = processes.youngest(SocketOwners.YOUNGEST)
        if process.pid in found:
            return
    pytest.fail(f"{process.pid} is not among {found}")


def test_neither_a_thread_nor_a_child_of_a_guest_passes_for_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_sockets, "_owners", SocketOwners())
    with connected() as (client, _):
        inode = os.fstat(client.fileno()).st_ino
        with subprocess.Popen(["/bin/sleep", "60"], pass_fds=[client.fileno()]) as child:
            try:
                assert held_by_guest(inode, known=[os.getpid()])
            finally:
                child.kill()
        asked, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            asked.set()
            go_on.wait(60)

        thread = threading.Thread(target=wait)
        thread.start()
        asked.wait(60)
        try:
            # The youngest number is this thread's, whose open files are its process's.
            assert thread.native_id is not None
            monkeypatch.setattr(processes, "youngest", lambda _: range(thread.native_id or 0, 0, -1)[:1])
            assert held_by_guest(inode, known=[os.getpid()])
            assert not held_by_guest(inode)
            assert guest_sockets._owners._clients[:1] == (os.getpid(),)
        finally:
            go_on.set()
            thread.join()


def test_a_process_that_becomes_a_guest_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """By exec, under the number that was read before: names are kept for a moment only."""
    monkeypatch.setattr(guest_sockets, "_owners", SocketOwners())
    with connected() as (client, _):
        inode = os.fstat(client.fileno()).st_ino
        assert not held_by_guest(inode)
        monkeypatch.setattr(processes, "name_of", lambda pid: "qemu-system-x86" if pid == os.getpid() else "")
        monkeypatch.setattr(time, "monotonic", lambda: guest_sockets._owners._read_at + 2.1)
        assert held_by_guest(inode)


async def ask_as(user: str, api: Served) -> str:
    host, port = api.address
    command = ["su", "-s", "/bin/bash", user, "-c", ASK.format(host=host, port=port)]
    with trio.fail_after(60):
        done = await trio.run_process(command, capture_stdout=True)
    return done.stdout.decode()


@needs_root
@pytest.mark.system
async def test_another_user_of_this_machine_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        refused = await ask_as("nobody", api)
        assert refused.startswith("HTTP/1.1 401"), refused
        assert '"code":"unauthenticated"' in refused
        assert (await ask_as("root", api)).startswith("HTTP/1.1 200")


async def test_a_guest_is_refused_though_it_is_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This very process plays the QEMU through which a guest calls."""
    monkeypatch.setattr(Node, "guest_pids", lambda _: [os.getpid()])
    async with served(tmp_path) as api, await trio.open_tcp_stream(*api.address) as stream:
        await stream.send_all(b"GET /api/vm HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 401")


async def test_the_kernels_name_for_nobody_in_particular_is_not_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: sockets.OVERFLOW_UID)
    assert not is_own(sockets.OVERFLOW_UID)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert is_own(1000)
    assert is_own(0)
    assert not is_own(1001)
