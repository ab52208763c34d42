"""Opens streams to a guest: its TCP ports, its screen, its serial console.

Behind QEMU's own NAT a TCP port is reached by a forward that is made at run time on the guests' loopback.

A forward lasts as long as the guest's QEMU, so it is made once for each start and port; QEMU itself lists them, and the
next agent finds them again. Each listens on a random loopback address: 127.0.0.1 is what other guests of the sandbox
reach as 10.0.2.2.
"""

from __future__ import annotations

import re
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu
import structlog
import trio

from ....protocols.errors import Unsupported
from ..domain_xml import guest_channel_is_open, parse_domain, parse_guest_channel, parse_screen
from .domain_ops import running_state
from .inspection import read_addresses

log = structlog.get_logger(__name__)

Endpoint = tuple[str, int]  # of the guests' loopback: address and port
_MAX_FORWARDS = 256
_DIAL_TIMEOUT, _DIAL_INTERVAL = 5.0, 0.02  # seconds, for a unix socket whose backlog is full
# QEMU prints a table: protocol and state, descriptor, source address and port, destination address and port, queues.
_ROW = re.compile(r"^\s*TCP\[HOST_FORWARD\]\s+\d+\s+([\d.]+)\s+(\d+)\s+[\d.]+\s+(\d+)\s", re.MULTILINE)
_HUB = re.compile(r"^\S.*\(([^()]+)\):\s*$", re.MULTILINE)


Run = Callable[[Callable[[libvirt.virDomain], Any]], Awaitable[Any]]  # a call on the domain, in some lane
Dial = Callable[[int, str], Awaitable[trio.SocketStream]]


@dataclass(frozen=True, slots=True)
class HostForward:
    """A port on the guests' loopback that QEMU forwards to a port of its guest."""

    host: str
    host_port: int
    guest_port: int


class GuestDialer:
    """Caches the forwards of each run of a domain.

    `dial` connects to a port of the guests' loopback. `uid` is the user that QEMU runs as, None where that is unknown.
    """

    def __init__(self, dial: Dial, uid: int | None) -> None:
        self._dial = dial
        self._uid = uid
        self._forwards: dict[tuple[str, int], dict[int, Endpoint]] = {}

    async def dial(self, quick: Run, slow: Run, id: str, port: int) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        run = await quick(_run_of)
        forwards = self._forwards.get((id, run))
        if forwards is None:
            self._forwards = {key: value for key, value in self._forwards.items() if key[0] != id}
            forwards = self._forwards[id, run] = {}
        if port in forwards:
            host, host_port = forwards[port]
            with suppress(OSError):
                return await self._dial(host_port, host)
        target = await slow(lambda domain: _target_of(domain, port))
        if isinstance(target, str):
            return await trio.open_tcp_stream(target, port)
        host, host_port = forwards[port] = target
        return await self._dial(host_port, host)

    async def dial_screen(self, quick: Run) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        return await self._dial_socket(await quick(_screen_of), "screen")

    async def dial_console(self, quick: Run) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        return await self._dial_socket(await quick(_console_of), "console")

    async def dial_channel(self, quick: Run) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        return await self._dial_socket(await quick(_channel_of), "guest channel")

    async def _dial_socket(self, path: str, what: str) -> trio.SocketStream:
        with trio.move_on_after(_DIAL_TIMEOUT):
            while True:
                stream = await trio.open_unix_socket(path)
                credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                pid, uid, _ = struct.unpack("3i", credentials)
                if pid != 0 and self._uid in (None, uid):
                    return stream
                await stream.aclose()
                if pid != 0:
                    # The socket is in a folder of QEMU's user, who could have put a link to another socket there.
                    raise PermissionError(f"another process than the VM's QEMU listens on the socket of its {what}")
                # QEMU's backlog is one connection; trio takes the kernel's EAGAIN for a connection in progress.
                await trio.sleep(_DIAL_INTERVAL)
        raise TimeoutError(f"the VM's QEMU does not accept a connection to its {what}")


def _screen_of(domain: libvirt.virDomain) -> str:
    running_state(domain)
    path = parse_screen(domain.XMLDesc(0))
    if path is None:
        raise Unsupported("the VM has no screen that this node can reach")
    return path


def _console_of(domain: libvirt.virDomain) -> str:
    running_state(domain)
    path = parse_domain(domain.XMLDesc(0)).serial
    if path is None:
        raise Unsupported("the VM has no serial console that this node can reach")
    return path


def _channel_of(domain: libvirt.virDomain) -> str:
    running_state(domain)
    path = parse_guest_channel(domain.XMLDesc(0))
    if path is None:
        raise Unsupported("the VM was defined without a guest channel")
    return path


def channel_is_open(domain: libvirt.virDomain) -> bool:
    """Raises: WrongState, Unsupported."""
    running_state(domain)
    found = guest_channel_is_open(domain.XMLDesc(0))
    if found is None:
        raise Unsupported("the VM was defined without a guest channel")
    return found


def _run_of(domain: libvirt.virDomain) -> int:
    running_state(domain)
    return int(domain.ID())


def _target_of(domain: libvirt.virDomain, port: int) -> Endpoint | str:
    """Return an endpoint on the guests' loopback, or an address that libvirt's DHCP leased to the guest.

    An address that the guest agent reports is never dialled: it could be any host's.
    """
    running_state(domain)
    netdev = parse_domain(domain.XMLDesc(0)).netdev
    if netdev is not None:
        return open_forward(domain, netdev, port)
    found = read_addresses(domain, sources=("lease",)).addresses
    if not found:
        raise Unsupported("the VM's network has given it no address that this node can reach")
    return found[0]


def open_forward(domain: libvirt.virDomain, netdev: str, guest_port: int) -> Endpoint:
    """Return the endpoint of the guest's port on the loopback: the existing forward, else a new one.

    Raises: Unsupported when QEMU will not, libvirt.libvirtError.
    """
    before = _list_forwards(domain, netdev)
    for forward in before:
        if _is_ours(forward) and forward.guest_port == guest_port:
            return forward.host, forward.host_port
    if len(before) >= _MAX_FORWARDS:
        _command(domain, f"hostfwd_remove {netdev} tcp:{before[-1].host}:{before[-1].host_port}")
    refusal = _command(domain, f"hostfwd_add {netdev} tcp:{_secret_address()}:0-:{guest_port}").strip()
    for forward in _list_forwards(domain, netdev):
        if _is_ours(forward) and forward.guest_port == guest_port:
            return forward.host, forward.host_port
    log.warning("QEMU made no forward", netdev=netdev, guest_port=guest_port, text=refusal)
    raise Unsupported("the VM's network takes no forwards")


def _secret_address() -> str:
    """Return one of four million addresses; the port is one of some thirty thousand."""
    return f"127.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


def _is_ours(forward: HostForward) -> bool:
    return forward.host.startswith("127.") and forward.host != "127.0.0.1"


def parse_forwards(text: str, netdev: str) -> Iterator[HostForward]:
    """Yield the rows of `info usernet` that belong to `netdev`."""
    titles = list(_HUB.finditer(text))
    for number, title in enumerate(titles):
        if title[1] == netdev:
            end = titles[number + 1].start() if number + 1 < len(titles) else len(text)
            for row in _ROW.finditer(text, title.end(), end):
                yield HostForward(row[1], int(row[2]), int(row[3]))


def _list_forwards(domain: libvirt.virDomain, netdev: str) -> list[HostForward]:
    return list(parse_forwards(_command(domain, "info usernet"), netdev))


def _command(domain: libvirt.virDomain, line: str) -> str:
    """Run a line of ours in QEMU's human monitor, which returns failures as text, not as errors."""
    return str(libvirt_qemu.qemuMonitorCommand(domain, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP))
