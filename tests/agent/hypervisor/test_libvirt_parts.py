"""The parts of the libvirt adapter that need no libvirt to be tried."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import libvirt
import pytest
import trio
import trio.testing

from tests.stopwatch import within
from twinshare.agent.hypervisor import log_size
from twinshare.agent.hypervisor.domain_xml import DomainDefinition
from twinshare.agent.hypervisor.libvirt import console_log, domain_ops
from twinshare.agent.hypervisor.libvirt.capabilities import choose_accelerator
from twinshare.agent.hypervisor.libvirt.domain_cache import CACHED_FOR, DomainCache
from twinshare.agent.hypervisor.libvirt.errors import map_error
from twinshare.agent.hypervisor.libvirt.guest_streams import HostForward, parse_forwards
from twinshare.agent.hypervisor.libvirt.inspection import usable_addresses
from twinshare.agent.hypervisor.libvirt.lanes import Lane, Lanes
from twinshare.agent.hypervisor.log_size import KEPT_SIZE, MAX_LOG_SIZE, truncate
from twinshare.protocols import errors

# What libvirt 9.0 and QEMU 7.2 were heard to say.
HEARD: list[tuple[int, int, str, type[errors.TwinshareError]]] = [
    (42, 10, "Domain not found: no domain with matching uuid '6a1d'", errors.VmNotFound),
    (9, 20, "operation failed: domain 'a' already exists with uuid 2559", errors.VmExists),
    (9, 20, "operation failed: domain 'a' is already defined with uuid 2e68", errors.VmExists),
    (55, 10, "Requested operation is not valid: domain is not running", errors.WrongState),
    (84, 10, "Operation not supported: cannot perform disk backup for inactive domain", errors.WrongState),
    (38, 18, "Cannot access storage file '/x' (as uid:999, gid:995): No such file or directory", errors.ImageDamaged),
    (38, 18, "Cannot access backing file '/b' of storage file '/x' (as uid:999)", errors.ImageDamaged),
    (38, 18, "Failed to open file '/x': Permission denied", errors.ImageDamaged),
    (
        1,
        10,
        'internal error: x qemu-system-x86_64: -blockdev {"a":1}: Image is not in qcow2 format',
        errors.ImageDamaged,
    ),
    (1, 10, 'internal error: x qemu-system-x86_64: -blockdev {"a":1}: qcow2 header too short', errors.ImageDamaged),
    (
        1,
        10,
        'qemu-system-x86_64: -blockdev {"a":1}: Failed to get "write" lock\nIs another process using the image [/x]?',
        errors.WrongState,
    ),
    (1, 10, "internal error: qemu-system-x86_64: cannot set up guest memory 'pc.ram'", errors.InsufficientResources),
    (1, 10, "qemu-system-x86_64: -blockdev {}: write: No space left on device", errors.InsufficientResources),
    (67, 10, "unsupported configuration: Emulator '/q' does not support virt type 'kvm'", errors.Unsupported),
    (
        68,
        10,
        "Timed out during operation: cannot acquire state change lock (held by monitor=x)",
        errors.DeadlineExceeded,
    ),
    (1, 7, "internal error: client socket is closed", errors.HypervisorDown),
    (38, 7, "Failed to connect socket to '/x/libvirt-sock': No such file or directory", errors.HypervisorDown),
    (38, 7, "Cannot recv data: Connection reset by peer", errors.HypervisorDown),
    (38, 7, "End of file while reading data: Input/output error", errors.HypervisorDown),
    (39, 7, "internal error: connection closed due to keepalive timeout", errors.HypervisorDown),
    (45, 7, "authentication failed: access denied", errors.HypervisorDown),
    (3, 20, "this function is not supported by the connection driver: x", errors.Unsupported),
    (1, 10, "internal error: process exited while connecting to monitor", errors.WrongState),
    (1, 10, "internal error: qemu unexpectedly closed the monitor: q: terminating on signal 15", errors.WrongState),
    (1, 10, "internal error: process exited while connecting to monitor: q: what is this", errors.TwinshareError),
    (38, 10, "Unable to read from monitor: Connection reset by peer", errors.WrongState),
    (38, 10, "Unable to write to monitor: Broken pipe", errors.WrongState),
    (9, 10, "operation failed: domain is no longer running", errors.WrongState),
    (1, 10, "internal error: /etc/shadow 0xdeadbeef", errors.TwinshareError),
]


def libvirt_error(code: int, domain: int, text: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(text)
    error.err = (code, domain, text, 2, "", None, None, -1, -1)
    error.args = (text,)
    return error


@pytest.mark.parametrize(("code", "domain", "text", "kind"), HEARD)
def test_each_error_has_its_name_and_keeps_the_host_to_itself(
    code: int, domain: int, text: str, kind: type[errors.TwinshareError]
) -> None:
    renamed = map_error(libvirt_error(code, domain, text), "start the VM")
    assert type(renamed) is kind
    assert renamed.message.startswith("cannot start the VM: ")
    assert "/" not in renamed.message
    assert "0x" not in renamed.message


class Reluctant:
    """A domain whose first starts fail."""

    def __init__(self, *failures: str) -> None:
        self._failures = list(failures)
        self.begun = 0

    def create(self) -> None:
        self.begun += 1
        if self._failures:
            raise libvirt_error(1, 10, self._failures.pop(0))

    def isActive(self) -> bool:  # noqa: N802 - as libvirt has it
        return False


KILLED = "internal error: process exited while connecting to monitor"


def test_a_start_whose_qemu_was_killed_is_begun_once_more() -> None:
    domain = Reluctant(KILLED)
    domain_ops.start(domain)  # type: ignore[arg-type]  # of a domain what a start needs
    assert domain.begun == 2


@pytest.mark.parametrize(("words", "begun"), [([KILLED, KILLED], 2), (["internal error: -machine: no such"], 1)])
def test_no_start_is_begun_for_ever_or_in_vain(words: list[str], begun: int) -> None:
    domain = Reluctant(*words)
    with pytest.raises(libvirt.libvirtError):
        domain_ops.start(domain)  # type: ignore[arg-type]  # of a domain what a start needs
    assert domain.begun == begun


@pytest.mark.parametrize(
    ("wish", "offered", "cpu_can", "chosen"),
    [
        ("auto", True, True, "kvm"),
        ("auto", True, False, "qemu"),  # paravirtual KVM: offered, and it hangs guests
        ("auto", False, True, "qemu"),
        ("auto", False, False, "qemu"),
        ("kvm", False, False, "kvm"),
        ("qemu", True, True, "qemu"),
    ],
)
def test_kvm_only_where_the_cpu_says_so_too(
    wish: Literal["auto", "kvm", "qemu"], offered: bool, cpu_can: bool, chosen: str
) -> None:
    accelerator, problem = choose_accelerator(wish, offered, cpu_can)
    assert accelerator == chosen
    assert (problem is not None) == (wish == "auto" and chosen == "qemu")


USERNET = """\
Hub 0 (#net071):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  10       127.0.0.1  4001       10.0.2.15    81     0     0
Hub -1 (hostnet0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]   43       10.0.2.15 43234    192.168.1.1    80     0     0
  TCP[HOST_FORWARD]  33       127.0.0.1 37089       10.0.2.15    80     0     0
  UDP[HOST_FORWARD]  34       127.0.0.1 37090       10.0.2.15    53     0     0
  TCP[HOST_FORWARD]  35         0.0.0.0 37091       10.0.2.15    22     0     0
"""


def test_forwards_are_read_from_the_table_of_the_right_network() -> None:
    assert list(parse_forwards(USERNET, "hostnet0")) == [
        HostForward("127.0.0.1", 37089, 80),
        HostForward("0.0.0.0", 37091, 22),  # noqa: S104 - not bound
    ]
    assert list(parse_forwards(USERNET, "#net071")) == [HostForward("127.0.0.1", 4001, 81)]
    assert list(parse_forwards(USERNET, "ts0")) == []


def test_the_guests_word_on_its_addresses_is_read_with_care() -> None:
    interfaces = {
        "lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1"}, {"addr": "::1"}]},
        "docker0": {"hwaddr": "02:42:00:00:00:01", "addrs": [{"addr": "172.17.0.1"}]},
        "none": {"hwaddr": None, "addrs": None},
        "eth0": {
            "hwaddr": "52:54:00:AA:BB:CC",
            "addrs": [
                {"addr": "fe80::1"},
                {"addr": "fd00::5"},
                {"addr": "10.0.2.15"},
                {"addr": "<script>"},
                {"addr": ""},
            ],
        },
    }
    assert usable_addresses(interfaces, "52:54:00:aa:bb:cc") == ("10.0.2.15", "fd00::5", "172.17.0.1")
    assert usable_addresses(None, None) == ()


def test_a_long_log_is_cut_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "tty.log"
    with log.open("ab") as qemu:
        qemu.write(b"x" * MAX_LOG_SIZE)
        qemu.flush()
        truncate(log)
        assert log.stat().st_size == MAX_LOG_SIZE
        qemu.write(b"end")
        qemu.flush()
        truncate(log)
        qemu.write(b" and on")
        qemu.flush()
    assert log.stat().st_size == KEPT_SIZE + len(b" and on")
    assert log.read_bytes().endswith(b"xend and on")


async def test_logs_that_grow_are_cut_while_others_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_size, "CHECKED_EVERY", 0.01)
    logs = [tmp_path / name for name in ("missing.log", "daemon.log", "tty.log")]
    for log in logs[1:]:
        log.write_bytes(b"x" * (MAX_LOG_SIZE + 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console_log.limit_logs, lambda: logs, None)
        with within(10):
            while any(log.stat().st_size > KEPT_SIZE for log in logs[1:]):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * (MAX_LOG_SIZE + 1))
    (tmp_path / "tty.log").symlink_to(precious)
    truncate(tmp_path / "tty.log")
    assert precious.stat().st_size == MAX_LOG_SIZE + 1


DEFINITION = DomainDefinition(
    name="a", cpu_cores=1, memory=64, accelerator="qemu", metadata="", serial=None, netdev=None, mac=None
)


def test_a_definition_that_changes_during_a_scan_is_read_again() -> None:
    cache = DomainCache()
    scan = cache.begin_scan()
    scan.new_definitions["a"] = scan.new_definitions["b"] = DEFINITION
    cache.forget("a")
    cache.merge(scan, complete=False)
    assert set(cache.begin_scan().definitions) == {"b"}
    cache.forget_all()
    assert not cache.begin_scan().definitions


def test_cached_definitions_expire_and_missing_domains_are_dropped() -> None:
    now = 0.0
    cache = DomainCache(lambda: now)
    scan = cache.begin_scan()
    scan.new_definitions["a"] = DEFINITION
    scan.new_start_times["a", 1] = datetime.now(UTC)
    cache.merge(scan, complete=False)
    now = CACHED_FOR - 1
    assert "a" in cache.begin_scan().definitions
    now = CACHED_FOR + 1
    again = cache.begin_scan()
    assert not again.definitions
    assert again.start_times
    cache.merge(again, complete=True)
    assert not cache.begin_scan().start_times


async def test_a_guest_that_hangs_costs_one_thread_and_is_barred_until_it_answers() -> None:
    lanes, answer, asked = Lanes({Lane.MONITOR: 0.2}), threading.Event(), []

    def hang() -> None:
        asked.append(1)
        answer.wait()

    async def ask() -> None:
        with pytest.raises(errors.DeadlineExceeded):
            await lanes.ask_guest("hung", hang)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask)
        assert len(asked) == 1
        assert lanes.is_stuck("hung")
        assert await lanes.ask_guest("other", lambda: 7) == 7
        assert await lanes.run(Lane.RESCUE, lambda: 8) == 8
    finally:
        answer.set()
    with trio.fail_after(60):
        while lanes.is_stuck("hung"):
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert await lanes.ask_guest("hung", lambda: 9) == 9


async def test_after_a_caller_who_left_the_next_one_waits_its_turn() -> None:
    lanes, asked, answer = Lanes(), threading.Event(), threading.Event()

    def ask() -> None:
        asked.set()
        answer.wait()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lanes.ask_guest, "a", ask)
            while not asked.is_set():
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert lanes.is_stuck("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lanes.ask_guest, "a", lambda: None)
        await trio.testing.wait_all_tasks_blocked(0.05)
        answer.set()
    assert not lanes.is_stuck("a")


async def test_a_caller_who_never_got_a_thread_leaves_no_trace() -> None:
    lanes, release = Lanes(), threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(lanes.ask_guest, f"vm-{number}", release.wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.move_on_after(0.05):
                await lanes.ask_guest("late", lambda: None)
            assert not lanes.is_stuck("late")
            release.set()
    finally:
        release.set()


async def test_an_error_in_a_lane_comes_back_as_it_is() -> None:
    def fail() -> None:
        raise errors.WrongState("no")

    with pytest.raises(errors.WrongState):
        await Lanes().ask_guest("a", fail)
    assert not Lanes().is_stuck("a")
