"""Reach a guest's TCP port. Behind QEMU's own NAT: by a forward made at run time on the guests' loopback.

A forward lives as long as the guest's QEMU, so it is made once for each start and port; QEMU itself is the list of
them, and an agent that was killed finds them again. Each listens on a loopback address of its own that nobody can
guess: 127.0.0.1 is what other guests there reach as 10.0.2.2.
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
from ..domain_xml import read_domain, read_screen
from .observing import read_addresses
from .verbs import running_state

log = structlog.get_logger(__name__)

Endpoint = tuple[str, int]  # of the guests' loopback: address and port
_MOST = 256
# QEMU prints a table: protocol and state, descriptor, source address and port, destination address and port, queues.
_ROW = re.compile(r"^\s*TCP\[HOST_FORWARD\]\s+\d+\s+([\d.]+)\s+(\d+)\s+[\d.]+\s+(\d+)\s", re.MULTILINE)
_HUB = re.compile(r"^\S.*\(([^()]+)\):\s*$", re.MULTILINE)


Run = Callable[[Callable[[libvirt.virDomain], Any]], Awaitable[Any]]  # a call on the domain, in some lane
Dial = Callable[[int, str], Awaitable[trio.SocketStream]]


@dataclass(frozen=True, slots=True)
class HostForward:
    """A port on the guests' loopback that QEMU leads to a port of its guest."""

    host: str
    host_port: int
    guest_port: int


class Dialler:
    """Remembers the forwards of each start of a domain.

    `dial` connects to a port of the guests' loopback. `uid` is the user that QEMU runs as, None where that is unknown.
    """

    def __init__(self, dial: Dial, uid: int | None) -> None:
        self._dial = dial
        self._uid = uid
        self._places: dict[tuple[str, int], dict[int, Endpoint]] = {}

    async def dial(self, quick: Run, slow: Run, id: str, port: int) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        run = await quick(_run_of)
        places = self._places.get((id, run))
        if places is None:
            self._places = {key: value for key, value in self._places.items() if key[0] != id}
            places = self._places[id, run] = {}
        if port in places:
            host, host_port = places[port]
            with suppress(OSError):
                return await self._dial(host_port, host)
        way = await slow(lambda domain: _way_to(domain, port))
        if isinstance(way, str):
            return await trio.open_tcp_stream(way, port)
        host, host_port = places[port] = way
        return await self._dial(host_port, host)

    async def dial_screen(self, quick: Run) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        return await self._dial_socket(await quick(_screen_of), "screen")

    async def dial_console(self, quick: Run) -> trio.SocketStream:
        """Raises: WrongState, Unsupported, OSError."""
        return await self._dial_socket(await quick(_console_of), "console")

    async def _dial_socket(self, path: str, what: str) -> trio.SocketStream:
        stream = await trio.open_unix_socket(path)
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if self._uid is not None and struct.unpack("3i", credentials)[1] != self._uid:
            # The socket lies in a folder of QEMU's user, who could have put a link to anybody's socket there.
            await stream.aclose()
            raise PermissionError(f"somebody else than the VM's QEMU answers for its {what}")
        return stream


def _screen_of(domain: libvirt.virDomain) -> str:
    running_state(domain)
    path = read_screen(domain.XMLDesc(0))
    if path is None:
        raise Unsupported("the VM has no screen that this node can reach")
    return path


def _console_of(domain: libvirt.virDomain) -> str:
    running_state(domain)
    path = read_domain(domain.XMLDesc(0)).serial
    if path is None:
        raise Unsupported("the VM has no serial console that this node can reach")
    return path


def _run_of(domain: libvirt.virDomain) -> int:
    running_state(domain)
    return int(domain.ID())


def _way_to(domain: libvirt.virDomain, port: int) -> Endpoint | str:
    """A place on the guests' loopback, or an address that libvirt's own DHCP gave the guest.

    An address that the guest's agent tells is never dialled: it could be anybody's.
    """
    running_state(domain)
    netdev = read_domain(domain.XMLDesc(0)).netdev
    if netdev is not None:
        return open_forward(domain, netdev, port)
    found = read_addresses(domain, sources=("lease",)).addresses
    if not found:
        raise Unsupported("the VM's network has given it no address that this node can reach")
    return found[0]


def open_forward(domain: libvirt.virDomain, netdev: str, guest_port: int) -> Endpoint:
    """Where on the loopback the guest's port is; the forward that is there, else a new one.

    Raises: Unsupported when QEMU will not, libvirt.libvirtError.
    """
    before = _forwards(domain, netdev)
    for forward in before:
        if _is_ours(forward) and forward.guest_port == guest_port:
            return forward.host, forward.host_port
    if len(before) >= _MOST:
        _command(domain, f"hostfwd_remove {netdev} tcp:{before[-1].host}:{before[-1].host_port}")
    refusal = _command(domain, f"hostfwd_add {netdev} tcp:{_secret_address()}:0-:{guest_port}").strip()
    for forward in _forwards(domain, netdev):
        if _is_ours(forward) and forward.guest_port == guest_port:
            return forward.host, forward.host_port
    log.warning("QEMU made no forward", netdev=netdev, guest_port=guest_port, text=refusal)
    raise Unsupported("the VM's network takes no forwards")


def _secret_address() -> str:
    """One of four million, with one of some thirty thousand ports."""
    return f"127.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


def _is_ours(forward: HostForward) -> bool:
    return forward.host.startswith("127.") and forward.host != "127.0.0.1"


def parse_forwards(text: str, netdev: str) -> Iterator[HostForward]:
    """The rows of `info usernet` that belong to `netdev`."""
    titles = list(_HUB.finditer(text))
    for number, title in enumerate(titles):
        if title[1] == netdev:
            end = titles[number + 1].start() if number + 1 < len(titles) else len(text)
            for row in _ROW.finditer(text, title.end(), end):
                yield HostForward(row[1], int(row[2]), int(row[3]))


def _forwards(domain: libvirt.virDomain, netdev: str) -> list[HostForward]:
    return list(parse_forwards(_command(domain, "info usernet"), netdev))


def _command(domain: libvirt.virDomain, line: str) -> str:
    """QEMU's human monitor. Every word of `line` is ours; failures come back as text, not as errors."""
    return str(libvirt_qemu.qemuMonitorCommand(domain, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP))
