"""Reads counters, addresses and the screen of a running domain. Each call may wait for its QEMU: it needs a lane."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import libvirt

from ....protocols.errors import Unsupported
from ..domain_xml import parse_domain
from ..png import png_from_ppm
from ..port import Addresses, DomainStats
from .domain_ops import AGENT_TIMEOUT, running_state

_SOURCES = {
    "agent": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    "lease": libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
}
_MAX_SCREENSHOT = 64 << 20
_STATS_GROUPS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_BLOCK
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
)


def read_stats(domain: libvirt.virDomain) -> DomainStats:
    """Return the counters; a network in user mode has none. Raises: WrongState."""
    running_state(domain)
    found = _connection(domain).domainListGetStats([domain], _STATS_GROUPS, 0)
    counters: Mapping[str, Any] = found[0][1] if found else {}
    cpu_time: Any = counters.get("cpu.time") or domain.info()[4]
    return DomainStats(
        cpu_time=cpu_time / 1e9,
        memory_rss=counters.get("balloon.rss", 0) << 10,
        disk_read=_sum(counters, "block", "rd.bytes"),
        disk_written=_sum(counters, "block", "wr.bytes"),
        disk_allocated=counters.get("block.0.physical", 0),
        net_received=_sum(counters, "net", "rx.bytes"),
        net_sent=_sum(counters, "net", "tx.bytes"),
    )


def read_addresses(domain: libvirt.virDomain, sources: Sequence[str] = ("agent", "lease")) -> Addresses:
    """Ask the guest agent, else the DHCP leases of libvirt's network. An agent's answer is the guest's claim only.

    Raises: WrongState.
    """
    running_state(domain)
    mac = parse_domain(domain.XMLDesc(0)).mac
    for source in sources:
        try:
            if source == "agent":
                domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
            interfaces: Any = domain.interfaceAddresses(_SOURCES[source], 0)
        except libvirt.libvirtError:
            continue  # no agent, or no network of libvirt's
        if addresses := usable_addresses(interfaces, mac):
            return Addresses(addresses=addresses, source=source)
    return Addresses(addresses=(), source="none")


def usable_addresses(interfaces: Mapping[str, Any] | None, mac: str | None) -> tuple[str, ...]:
    """Return the addresses: of our own network card first, IPv4 first; neither loopback nor link-local."""
    found: list[tuple[bool, int, str]] = []
    for interface in (interfaces or {}).values():
        ours = (interface.get("hwaddr") or "").lower() == mac
        for entry in interface.get("addrs") or ():
            try:
                address = ipaddress.ip_address(entry["addr"])
            except ValueError:
                continue
            if not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast):
                found.append((not ours, address.version, str(address)))
    # Sorted by the first two only: within an interface the guest's own order stands.
    return tuple(dict.fromkeys(text for _, _, text in sorted(found, key=lambda entry: entry[:2])))


def take_screenshot(domain: libvirt.virDomain) -> bytes:
    """Return the screen as PNG. Raises: WrongState; Unsupported when libvirt's format cannot be converted."""
    running_state(domain)
    stream = _connection(domain).newStream(0)
    try:
        media_type = domain.screenshot(stream, 0, 0)
        picture = bytearray()
        while data := stream.recv(1 << 16):
            picture += data
            if len(picture) > _MAX_SCREENSHOT:
                raise Unsupported("the VM's screen is too large for a picture")
        stream.finish()
    except BaseException:
        stream.abort()
        raise
    if media_type == "image/png":
        return bytes(picture)
    if media_type == "image/x-portable-pixmap":
        return png_from_ppm(bytes(picture))
    raise Unsupported(f"the hypervisor takes pictures as {media_type}")


def _connection(domain: Any) -> libvirt.virConnect:
    return domain.connect()  # type: ignore[no-any-return]  # the binding has no types for it


def _sum(counters: Mapping[str, Any], kind: str, counter: str) -> int:
    return sum(counters.get(f"{kind}.{number}.{counter}", 0) for number in range(counters.get(f"{kind}.count", 0)))
