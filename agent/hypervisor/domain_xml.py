"""Converts a plan to libvirt's domain XML and back; no I/O.

Everything is built by ElementTree from typed values; no text of a user or a peer is ever inserted into XML or into
QEMU's command line.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from .port import DomainPlan

METADATA_URI = "urn:twinshare:domain:1"
METADATA_PREFIX = "twinshare"
QEMU_URI = "http://libvirt.org/schemas/domain/qemu/1.0"
RESTRICTED_NETDEV = "ts0"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
GUEST_CHANNEL = "org.twinshare.guest.0"
USER_NETDEV = "hostnet0"  # libvirt's own name for the first <interface type='user'>

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NOT_XML = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")
_AGENT_CONNECTED = f"devices/channel/target[@name='{AGENT_CHANNEL}'][@state='connected']"
MACHINES = {"x86_64": "q35", "aarch64": "virt"}


class NetworkKind(StrEnum):
    """`user`: QEMU's own NAT. `restricted`: the same without a way out; forwards to the guest still work."""

    USER = "user"
    RESTRICTED = "restricted"
    LIBVIRT = "network"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Network:
    """What a network's name means; `source` is libvirt's network or the host's bridge."""

    kind: NetworkKind
    source: str = ""


USER_NETWORKS: Mapping[str, Network] = {
    "default": Network(NetworkKind.USER),
    "isolated": Network(NetworkKind.RESTRICTED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the XML depends on besides the plan. `domain_type` is for libvirt's test driver."""

    arch: str = "x86_64"
    domain_type: str | None = None
    networks: Mapping[str, Network] = field(default_factory=lambda: USER_NETWORKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDefinition:
    """What changes only when a domain is defined anew. `netdev` is QEMU's name of a user-mode network."""

    name: str
    cpu_cores: int
    memory: int
    accelerator: str
    metadata: str | None
    serial: str | None
    netdev: str | None
    mac: str | None


def build_domain(plan: DomainPlan, facts: HostFacts) -> str:
    """Return the XML of a plan. Raises: KeyError for a network not in `facts`, ValueError for a bad MAC."""
    kvm = plan.accelerator == "kvm"
    domain = ET.Element("domain", {"type": facts.domain_type or plan.accelerator})
    _text(domain, "name", plan.name)
    _text(domain, "uuid", plan.id)
    domain.append(_metadata(plan.metadata))
    _text(domain, "memory", str(plan.memory), unit="MiB")
    _text(domain, "vcpu", str(plan.cpu_cores), placement="static")
    domain.append(_system(plan, facts))
    domain.append(_features(kvm=kvm))
    ET.SubElement(domain, "cpu", {"mode": "host-passthrough" if kvm else "maximum"})
    ET.SubElement(domain, "clock", {"offset": "utc"})
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    devices = ET.SubElement(domain, "devices")
    _disks(devices, plan)
    _other_devices(devices, plan)
    _network(domain, devices, plan, facts.networks[plan.network])
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def metadata_element(metadata: str) -> str:
    """Return the element for libvirt's setMetadata, which adds the namespace itself."""
    element = ET.Element("vm")
    _write_opaque(element, metadata)
    return ET.tostring(element, encoding="unicode")


def parse_domain(xml: str) -> DomainDefinition:
    """Parse a domain's XML, ours or not."""
    domain = ET.fromstring(xml)  # noqa: S314 - from our own libvirt
    memory = domain.find("memory")
    metadata = domain.find(f"metadata/{{{METADATA_URI}}}vm")
    serial = domain.find("devices/serial/source[@path]")
    return DomainDefinition(
        name=domain.findtext("name", ""),
        cpu_cores=int(domain.findtext("vcpu", "1")),
        memory=0 if memory is None else _mebibytes(memory),
        accelerator="kvm" if domain.get("type") == "kvm" else "qemu",
        metadata=None if metadata is None else _read_opaque(metadata),
        serial=None if serial is None else serial.get("path"),
        netdev=_netdev(domain),
        mac=_mac(domain),
    )


def parse_disk(xml: str) -> str | None:
    """Return the file of the first disk, None when it is no file."""
    disk = ET.fromstring(xml).find("devices/disk[@device='disk']/source[@file]")  # noqa: S314 - as above
    return None if disk is None else disk.get("file")


def has_agent(xml: str) -> bool:
    """Return whether a guest agent is connected to a running domain's channel."""
    return ET.fromstring(xml).find(_AGENT_CONNECTED) is not None  # noqa: S314 - as above


def parse_guest_channel(xml: str) -> str | None:
    """Return the unix socket of a domain's guest channel, None when it was defined without one."""
    for channel in ET.fromstring(xml).iterfind("devices/channel"):  # noqa: S314 - as above
        target, source = channel.find("target"), channel.find("source")
        if target is not None and source is not None and target.get("name") == GUEST_CHANNEL:
            return source.get("path")
    return None


def guest_channel_is_open(xml: str) -> bool | None:
    """Return whether a process in the guest has the port open; None when the domain was defined without one."""
    for target in ET.fromstring(xml).iterfind("devices/channel/target"):  # noqa: S314 - as above
        if target.get("name") == GUEST_CHANNEL:
            return target.get("state") != "disconnected"
    return None


def parse_screen(xml: str) -> str | None:
    """Return the unix socket of a running domain's VNC server."""
    listen = ET.fromstring(xml).find("devices/graphics[@type='vnc']/listen[@type='socket']")  # noqa: S314 - as above
    return None if listen is None else listen.get("socket")


def _system(plan: DomainPlan, facts: HostFacts) -> ET.Element:
    """The machine and its firmware. UEFI without secure boot: most images that are made by hand are not signed."""
    system = ET.Element("os")
    _text(system, "type", "hvm", arch=facts.arch, machine=MACHINES[facts.arch])
    if plan.firmware == "uefi":
        system.set("firmware", "efi")
        firmware = ET.SubElement(system, "firmware")
        for name in ("secure-boot", "enrolled-keys"):
            ET.SubElement(firmware, "feature", {"enabled": "no", "name": name})
        # libvirt chooses the firmware, and makes this file of the firmware's template at the first start.
        _text(system, "nvram", str(plan.directory / "nvram.fd"))
    return system


def _features(*, kvm: bool) -> ET.Element:
    features = ET.Element("features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if not kvm:
        # By default QEMU reserves a quarter of its memory limit for translated code; guests boot no slower with this.
        _text(ET.SubElement(features, "tcg"), "tb-cache", "64", unit="MiB")
    return features


def _metadata(text: str) -> ET.Element:
    metadata = ET.Element("metadata")
    # The namespace must be declared on this element: libvirt keeps the element alone.
    element = ET.SubElement(metadata, f"{METADATA_PREFIX}:vm", {f"xmlns:{METADATA_PREFIX}": METADATA_URI})
    _write_opaque(element, text)
    return metadata


def _disks(devices: ET.Element, plan: DomainPlan) -> None:
    disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    # Of all write errors only a full host disk pauses the guest: so a pause for an I/O error means a full disk.
    driver = {"name": "qemu", "type": "qcow2", "discard": "unmap", "detect_zeroes": "unmap", "error_policy": "enospace"}
    ET.SubElement(disk, "driver", driver)
    ET.SubElement(disk, "source", {"file": str(plan.disk)})
    ET.SubElement(disk, "target", {"dev": "vda", "bus": "virtio"})
    ET.SubElement(disk, "boot", {"order": "1"})
    if plan.seed is not None:
        # A virtio disk, not a CD: cloud kernels have neither AHCI nor IDE.
        seed = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(seed, "driver", {"name": "qemu", "type": "raw"})
        ET.SubElement(seed, "source", {"file": str(plan.seed)})
        ET.SubElement(seed, "target", {"dev": "vdb", "bus": "virtio"})
        ET.SubElement(seed, "readonly")


def _other_devices(devices: ET.Element, plan: DomainPlan) -> None:
    """Serial console, guest agent, guest channel, screen, entropy, balloon; every socket in the VM's own directory."""
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    serial = ET.SubElement(devices, "serial", {"type": "unix"})
    ET.SubElement(serial, "source", {"mode": "bind", "path": str(plan.directory / "tty.sock")})
    # Appended: the log then outlasts a restart, and can be cut short while QEMU writes.
    ET.SubElement(serial, "log", {"file": str(plan.directory / "tty.log"), "append": "on"})
    ET.SubElement(serial, "target", {"port": "0"})
    for name, file in ((AGENT_CHANNEL, "agent.sock"), (GUEST_CHANNEL, "guest.sock")):
        channel = ET.SubElement(devices, "channel", {"type": "unix"})
        ET.SubElement(channel, "source", {"mode": "bind", "path": str(plan.directory / file)})
        ET.SubElement(channel, "target", {"type": "virtio", "name": name})
    screen = ET.SubElement(devices, "graphics", {"type": "vnc"})
    ET.SubElement(screen, "listen", {"type": "socket", "socket": str(plan.directory / "vnc.sock")})
    ET.SubElement(ET.SubElement(devices, "video"), "model", {"type": "vga"})
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(ET.SubElement(devices, "memballoon", {"model": "virtio"}), "stats", {"period": "10"})


def _network(domain: ET.Element, devices: ET.Element, plan: DomainPlan, network: Network) -> None:
    if not _MAC.fullmatch(plan.mac):
        raise ValueError(f"{plan.mac!r} is not a MAC address in lower case")
    if network.kind is NetworkKind.RESTRICTED:
        # libvirt has no element for restrict=on, and its JSON netdevs refuse -set: the one use of the raw command line.
        domain.set("xmlns:qemu", QEMU_URI)
        commandline = ET.SubElement(domain, "qemu:commandline")
        device = f"virtio-net-pci,netdev={RESTRICTED_NETDEV},mac={plan.mac},romfile=,bus=pcie.0,addr=0x10"
        for value in ("-netdev", f"user,id={RESTRICTED_NETDEV},restrict=on", "-device", device):
            ET.SubElement(commandline, "qemu:arg", {"value": value})
        return
    interface = ET.SubElement(devices, "interface", {"type": network.kind.value})
    ET.SubElement(interface, "mac", {"address": plan.mac})
    if network.kind is not NetworkKind.USER:
        ET.SubElement(interface, "source", {network.kind.value: network.source})
    ET.SubElement(interface, "model", {"type": "virtio"})
    ET.SubElement(interface, "rom", {"enabled": "no"})


def _netdev(domain: ET.Element) -> str | None:
    if any(f"id={RESTRICTED_NETDEV}," in arg.get("value", "") for arg in domain.iter(f"{{{QEMU_URI}}}arg")):
        return RESTRICTED_NETDEV
    interface = domain.find("devices/interface")
    return USER_NETDEV if interface is not None and interface.get("type") == "user" else None


def _mac(domain: ET.Element) -> str | None:
    interface = domain.find("devices/interface/mac")
    if interface is not None:
        return interface.get("address")
    for argument in domain.iter(f"{{{QEMU_URI}}}arg"):
        if found := _MAC.search(argument.get("value", "")):
            return found[0]
    return None


def _mebibytes(memory: ET.Element) -> int:
    """Convert to MiB: libvirt writes KiB, but a definition by hand may have another unit."""
    factor = {"b": 1 / (1 << 20), "KiB": 1 / 1024, "MiB": 1, "GiB": 1024}[memory.get("unit", "KiB")]
    return int(int(memory.text or "0") * factor)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _write_opaque(element: ET.Element, text: str) -> None:
    """Write any text: XML cannot hold some characters, such as U+FFFF, which a label may contain."""
    if _NOT_XML.search(text):
        element.set("encoding", "base64")
        element.text = b64encode(text.encode("utf-8", "surrogatepass")).decode()
    else:
        element.text = text


def _read_opaque(element: ET.Element) -> str:
    text = element.text or ""
    if element.get("encoding") == "base64":
        with suppress(ValueError):  # written by hand: its reader validates it
            return b64decode(text, validate=True).decode("utf-8", "surrogatepass")
    return text
