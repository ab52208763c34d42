"""The parts of a sandbox that decide, without one."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cancellation import cancel_at_each_checkpoint
from tests.leaks import open_files
from twinshare.agent.hypervisor.sandbox import connection, processes
from twinshare.agent.hypervisor.sandbox.client import SupervisorClient
from twinshare.agent.hypervisor.sandbox.connection import SupervisorGone, request
from twinshare.agent.hypervisor.sandbox.host_network import blocked_prefixes, default_routes
from twinshare.agent.hypervisor.sandbox.identity import Identity, blocking_directory
from twinshare.agent.hypervisor.sandbox.location import Record, claim, socket_path
from twinshare.agent.hypervisor.sandbox.spawn import program
from twinshare.agent.hypervisor.sandbox.tools import Pipes
from twinshare.protocols.errors import HypervisorDown


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The agent's end and the supervisor's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_an_answer_and_a_descriptor_are_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    socket.send_fds(theirs, [b'{"pid": 7, "unknown": []}'], [theirs.fileno()])
    reply, descriptors = await request(ours, {"do": "hello"}, expected=1)
    assert theirs.recv(100) == b'{"do":"hello"}'
    assert reply.pid == 7
    assert len(descriptors) == 1
    assert not os.get_inheritable(descriptors[0])
    os.close(descriptors[0])


async def test_an_error_inside_is_raised_as_it_happened(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b'{"error": "No such file or directory", "errno": 2}')
    with pytest.raises(FileNotFoundError, match="No such file"):
        await request(ours, {"do": "launch"})


@pytest.mark.parametrize("words", [b"nonsense", b"\xff\xfe", b'{"pid": "seven"}', b"[1]", b"null"])
async def test_what_no_supervisor_says_is_not_believed(words: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(words)
    with pytest.raises(HypervisorDown, match="invalid reply"):
        await request(ours, {"do": "hello"})


async def test_a_closed_connection_is_supervisor_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(SupervisorGone):
        await request(ours, {"do": "hello"})


async def test_a_silent_supervisor_is_not_waited_for_for_ever(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.05)
    with pytest.raises(HypervisorDown, match="did not reply"):
        await request(pair[0], {"do": "hello"})


@pytest.mark.parametrize("words", [b'{"error": "No", "errno": 2}', b"nonsense", b'{"pid": 7}'])
async def test_descriptors_that_nobody_asked_for_are_closed(
    words: bytes, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    before = sorted(open_files())
    socket.send_fds(theirs, [words], [theirs.fileno(), theirs.fileno()])
    with pytest.raises((HypervisorDown, FileNotFoundError)):
        await request(ours, {"do": "hello"})
    assert sorted(open_files()) == before


async def test_looking_for_a_supervisor_that_is_silent_leaves_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.01)
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    pid = os.getpid()
    record = Record(id="00000000", path="link", supervisor=(pid, processes.start_time(pid) or 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(socket_path(record)))
        listener.listen(64)
        client = SupervisorClient(tmp_path, record, Identity(user=None, uid=0, gid=0, groups=()), log=2)
        assert await cancel_at_each_checkpoint(client._find) > 0


async def test_pipes_that_cannot_all_be_made_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([os.pipe2(os.O_CLOEXEC)])

    def pipe2(flags: int) -> tuple[int, int]:
        for ends in made:
            return ends
        raise OSError(errno.EMFILE, "too many open files")

    before = len(list(open_files()))
    monkeypatch.setattr(os, "pipe2", pipe2)
    with pytest.raises(OSError, match="too many"):
        await Pipes().__aenter__()
    assert len(list(open_files())) == before - 2


def test_a_barrier_is_the_first_folder_that_a_user_may_not_pass(tmp_path: Path) -> None:
    deep = tmp_path / "open/closed/group"
    deep.mkdir(parents=True)
    for folder, mode in (
        (tmp_path, 0o711),
        (tmp_path / "open", 0o711),
        (tmp_path / "open/closed", 0o700),
        (deep, 0o710),
    ):
        folder.chmod(mode)
    stranger, group = 4711, deep.stat().st_gid
    above = blocking_directory(tmp_path.parent, stranger, ())
    assert blocking_directory(deep, stranger, ()) == (above or tmp_path / "open/closed")
    (tmp_path / "open/closed").chmod(0o711)
    assert blocking_directory(deep, stranger, ()) == (above or deep)
    assert blocking_directory(deep, os.geteuid(), ()) is None
    assert blocking_directory(deep, stranger, {group}) == (blocking_directory(tmp_path.parent, stranger, {group}))


def test_processes_are_identified_by_their_start_time() -> None:
    own = os.getpid()
    assert processes.alive((own, processes.start_time(own) or 0))
    assert not processes.alive((own, 1))
    assert not processes.alive(None)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.start_time(child.pid) is None  # a zombie
    assert processes.start_time(child.pid) is None


@pytest.mark.parametrize("listed", [True, False])
def test_descendants_are_found(monkeypatch: pytest.MonkeyPatch, *, listed: bool) -> None:
    """Without a look at other processes where the kernel lists children: 20 ms with a thousand processes."""
    if listed:
        if not os.access("/proc/thread-self/children", os.R_OK):
            pytest.skip("this kernel lists no children")
        monkeypatch.setattr(processes, "_all", lambda: pytest.fail("all processes are read"))
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= processes.descendants(os.getpid())
        assert processes.descendants(child.pid) == {grandchild}
        os.kill(grandchild, 9)
    assert processes.descendants(child.pid) == frozenset()


def test_a_child_that_another_thread_has_made_is_a_descendant() -> None:
    with ThreadPoolExecutor() as pool:
        child = pool.submit(subprocess.Popen, ["/bin/sleep", "60"]).result()
        with child:
            try:
                assert child.pid in processes.descendants(os.getpid())
            finally:
                child.kill()


def test_own_addresses_are_unreachable_and_the_loopback_is_not_mentioned() -> None:
    found = blocked_prefixes()
    assert "169.254.0.0/16" in found
    assert not [prefix for prefix in found if prefix.startswith(("127.", "::1/"))]


def test_the_best_way_out_is_found(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "vpn0\t00000000\t00000000\t0001\t0\t0\t50\t00000080\t0\t0\t0\n"
    )
    zero, near = "0" * 32, "fe80" + "0" * 28
    (tmp_path / "ipv6_route").write_text(
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        f"{near} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001    wlan0\n"
        f"{zero} 00 {zero} 00 {near} 00000400 00000001 00000000 00000003    wlan0\n"
    )
    assert default_routes(tmp_path) == {"4 eth0", "6 wlan0"}
    assert default_routes(tmp_path / "nowhere") == frozenset()


def test_what_runs_inside_needs_the_standard_library_alone() -> None:
    """It is started without site-packages, and its interpreter may be hidden as soon as the namespaces stand."""
    for module, function in (
        ("supervisor", "main"),
        ("programs", "change_blocked_routes"),
        ("programs", "run_pasta"),
        ("programs", "try_namespaces"),
    ):
        command = program(module, function, [])
        command[4] = command[4].replace(f"; {function}()", "; import sys; print(*sys.modules)")
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        strangers = {"trio", "msgspec", "structlog", "dataclasses", "pathlib", "asyncio", "subprocess"}
        assert not strangers & set(done.stdout.split()), function


def test_the_record_is_the_agents_alone(tmp_path: Path) -> None:
    Record(id="00000000", path="/run/twinshare/00000000").save(tmp_path)
    assert (tmp_path / "enclosure.json").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["enclosure.json"]


def test_the_record_of_the_first_version_is_read_and_written(tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    first = {
        "id": "0badcafe", "path": str(tmp_path / "link"), "boot": boot, "kind": "namespaces", "keeper": None,
        "network": 0, "outlet": None, "ways": ["eth0"], "fenced": [],
    }  # fmt: skip
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "enclosure.json").write_text(json.dumps(first))
    record = claim(data_dir)
    assert (record.id, record.path, record.default_routes) == ("0badcafe", first["path"], ("eth0",))
    assert first.keys() <= json.loads((data_dir / "enclosure.json").read_text()).keys()
