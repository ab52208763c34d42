"""What this host and its libvirt can do, read once per connection."""

from __future__ import annotations

import os
import platform
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import libvirt

from ..cpu import cpu_can_virtualize
from ..domain_xml import MACHINES, USER_NETWORKS, HostFacts, Network, NetworkKind
from ..port import Features

Accelerator = Literal["auto", "kvm", "qemu"]

_NO_VIRTUALIZATION = "the CPU shows neither vmx nor svm: guests run in software emulation, which is many times slower"
_NO_KVM_ACCESS = "libvirt offers no KVM here (is /dev/kvm open to its user?): guests run in software emulation"
_OPEN_LOOPBACK = "guests on the network `default` can reach this machine's loopback: libvirt does not run in a sandbox"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`features` for users of the hypervisor, `host` for the XML of domains."""

    features: Features
    host: HostFacts


def unknown_capabilities(uri: str, accelerator: Accelerator) -> Capabilities:
    """Return what is assumed of a libvirt that was not reached yet."""
    features = Features(
        name="qemu",
        version="",
        uri=uri,
        accelerator="kvm" if accelerator == "kvm" else "qemu",
        networks=tuple(USER_NETWORKS),
        host_cpus=os.cpu_count() or 1,
    )
    return Capabilities(features, HostFacts(arch=platform.machine()))


def read_capabilities(
    connection: libvirt.virConnect, *, uri: str, accelerator: Accelerator, own_loopback: bool
) -> Capabilities:
    """`own_loopback`: guests have a loopback apart from the host's. Raises: libvirt.libvirtError."""
    driver = connection.getType()
    capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314 - from our own libvirt
    arch = platform.machine()
    problems = []
    if driver == "QEMU":
        chosen, problem = choose_accelerator(accelerator, _offers_kvm(capabilities, arch), cpu_can_virtualize())
        problems += [problem] if problem else []
    else:
        chosen = "qemu"
    networks = _networks(connection)
    if driver == "QEMU" and not own_loopback and networks["default"].kind is NetworkKind.USER:
        problems.append(_OPEN_LOOPBACK)
    features = Features(
        name=driver.lower(),
        version=f"libvirt {_version(connection.getLibVersion())}, {driver} {_version(connection.getVersion())}",
        uri=uri,
        accelerator=chosen,
        networks=tuple(networks),
        host_cpus=os.cpu_count() or 1,
        architecture=arch,
        firmwares=_firmwares(connection, arch, chosen),
        problems=tuple(problems),
    )
    return Capabilities(
        features, HostFacts(arch=arch, domain_type="test" if driver == "TEST" else None, networks=networks)
    )


def choose_accelerator(configured: Accelerator, offered: bool, cpu_can: bool) -> tuple[str, str | None]:
    """Return (accelerator, problem). libvirt's offer proves nothing: paravirtual KVM is offered, and hangs guests."""
    if configured != "auto":
        return configured, None
    if not cpu_can:
        return "qemu", _NO_VIRTUALIZATION
    return ("kvm", None) if offered else ("qemu", _NO_KVM_ACCESS)


def _firmwares(connection: libvirt.virConnect, arch: str, accelerator: str) -> tuple[str, ...]:
    """Return the firmwares that libvirt finds. It reads what the packages of firmware say of themselves."""
    own = () if arch == "aarch64" else ("bios",)  # that machine has no BIOS
    try:
        found = connection.getDomainCapabilities(None, arch, MACHINES.get(arch), accelerator)
    except libvirt.libvirtError:  # a driver that cannot tell
        return own
    efi = ET.fromstring(found).find("os/enum[@name='firmware']/[value='efi']")  # noqa: S314 - from our own libvirt
    return own if efi is None else (*own, "uefi")


def _offers_kvm(capabilities: ET.Element, arch: str) -> bool:
    return capabilities.find(f"guest/arch[@name='{arch}']/domain[@type='kvm']") is not None


def _networks(connection: libvirt.virConnect) -> dict[str, Network]:
    """Return the networks: user-mode ones always; libvirt's own and the host's bridges where the daemon is privileged.

    A libvirt network named `default` replaces the user-mode one of that name.
    """
    networks = dict(USER_NETWORKS)
    with suppress(libvirt.libvirtError):  # a daemon without the network driver has none
        for network in connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
            networks[network.name()] = Network(NetworkKind.LIBVIRT, network.name())
            with suppress(libvirt.libvirtError):
                networks.pop(network.bridgeName(), None)
    if connection.getURI().startswith("qemu:///system"):
        for entry in sorted(Path("/sys/class/net").glob("*/bridge")):
            name = entry.parent.name
            if not name.startswith("virbr"):
                networks.setdefault(name, Network(NetworkKind.BRIDGE, name))
    return networks


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
