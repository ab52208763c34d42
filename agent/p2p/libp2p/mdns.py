"""Neighbours on the local network, by multicast DNS: announces our peer ID and addresses, nothing else.

The library works in threads of its own and blocks for seconds when it starts and ends: it is called in a worker thread,
and what it hears comes over through trio's token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, NonUniqueNameException, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from ..addresses import parse
from ..discovery import OnHint
from ..host import PeerId

if TYPE_CHECKING:
    from .host import LibP2pHost

log = structlog.get_logger(__name__)
T = TypeVar("T")

SERVICE: Final = "_twinshare._udp.local."
_LOOK_EVERY: Final = 10.0
_ASK_TIME: Final = 3000
_MAX_TEXT: Final = 255
_MAX_ADDRESSES: Final = 8
_PREFIX: Final = b"dnsaddr="
_CLOSING_TIME: Final = 5.0
_NOT_UNDERSTOOD: Final = (ZeroconfError, RuntimeError, OSError, ValueError, TimeoutError, CancelledError)
"""A packet of a stranger, or the library closing: neither is worth more than a line."""


class MdnsDiscovery:
    """A `Discovery`. Without multicast (some containers have none) it finds nobody."""

    def __init__(self, host: LibP2pHost) -> None:
        self._host = host
        self._name = secrets.token_hex(8)
        self._thread = trio.CapacityLimiter(1)

    async def find_peer(self, peer_id: PeerId) -> Sequence[str]:
        return []

    async def run(self, on_hint: OnHint) -> None:
        token = trio.lowlevel.current_trio_token()

        def heard(addresses: list[str]) -> None:
            """In the library's thread."""
            try:
                token.run_sync_soon(self._on_addresses, on_hint, addresses)
            except trio.RunFinishedError:
                return

        try:
            zeroconf = await self._in_thread(_open)
        except OSError as error:
            log.info("no multicast here, nobody is found by it", reason=str(error))
            return
        try:
            ServiceBrowser(zeroconf, SERVICE, handlers=[_listener(heard)])
            await self._announce(zeroconf)
        finally:
            with trio.move_on_after(_CLOSING_TIME, shield=True):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)

    async def _announce(self, zeroconf: Zeroconf) -> None:
        """Announce our addresses, and again when they change."""
        announced: list[str] = []
        while True:
            addresses = [address for address in self._host.addresses if not parse(address).loopback][:_MAX_ADDRESSES]
            if addresses != announced:
                info = _service(self._name, addresses)
                try:
                    await self._in_thread(zeroconf.update_service if announced else zeroconf.register_service, info)
                    announced = addresses
                except (OSError, NonUniqueNameException) as error:
                    log.info("addresses not announced", reason=str(error))
            await trio.sleep(_LOOK_EVERY)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._thread)

    def _on_addresses(self, on_hint: OnHint, addresses: list[str]) -> None:
        for peer_id, its in _by_peer(addresses).items():
            if peer_id != self._host.peer_id:
                on_hint(peer_id, its)


def _open() -> Zeroconf:
    """Raises: OSError when no kind of address has multicast here."""
    try:
        return Zeroconf(ip_version=IPVersion.All)
    except OSError:  # one of the two is missing
        return Zeroconf(ip_version=IPVersion.V4Only)


def _service(name: str, addresses: Sequence[str]) -> ServiceInfo:
    lines = [line for line in (_PREFIX + address.encode() for address in addresses) if len(line) <= _MAX_TEXT]
    hosts = {parse(address).host for address in addresses}
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=parse(addresses[0]).port if addresses else 0,
        properties=b"".join(bytes([len(line)]) + line for line in lines),
        server=f"{name}.local.",
        addresses=[ip_address(host).packed for host in sorted(hosts) if _is_ip(host)],
    )


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _listener(heard: Callable[[list[str]], None]) -> Callable[..., None]:
    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """In the library's thread; what it raises would end that."""
        if state_change is ServiceStateChange.Removed:
            return
        try:
            info = zeroconf.get_service_info(service_type, name, _ASK_TIME)
        except _NOT_UNDERSTOOD as error:
            log.debug("a neighbour that cannot be understood", reason=str(error))
            return
        if info is not None:
            heard(list(_lines(info.text or b"")))

    return changed


def _lines(text: bytes) -> Iterator[str]:
    """The addresses in a TXT record, which anybody may have sent."""
    at = 0
    while at < len(text):
        line = text[at + 1 : at + 1 + text[at]]
        at += 1 + text[at]
        if line.startswith(_PREFIX):
            yield line.removeprefix(_PREFIX).decode(errors="replace")


def _by_peer(addresses: Sequence[str]) -> dict[PeerId, list[str]]:
    found: dict[PeerId, list[str]] = {}
    for text in addresses[:_MAX_ADDRESSES]:
        try:
            address = parse(text)
        except ValueError:
            continue
        if address.peer_id and address.port and not address.unspecified:
            found.setdefault(address.peer_id, []).append(text)
    return found
