"""Golden files: what we tell libvirt, word for word. `TWINSHARE_REGENERATE=1` writes them anew; read the difference."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from twinshare.agent.hypervisor.domain_xml import (
    METADATA_URI,
    DomainDefinition,
    HostFacts,
    Network,
    NetworkKind,
    build_domain,
    metadata_element,
    parse_domain,
)
from twinshare.agent.hypervisor.port import DomainPlan

GOLDEN = Path(__file__).parent / "golden"
DIRECTORY = Path("/run/node/vms/6a1d4a9c-6a58-4c5e-9d5f-0a4dd1f6c001")
PLAN = DomainPlan(
    id="6a1d4a9c-6a58-4c5e-9d5f-0a4dd1f6c001",
    name="alice",
    cpu_cores=2,
    memory=512,
    accelerator="qemu",
    directory=DIRECTORY,
    disk=DIRECTORY / "disk.qcow2",
    seed=None,
    network="default",
    mac="52:54:00:12:34:56",
    metadata='{"image": "tiny:latest"}',
)
PRIVILEGED = HostFacts(
    networks={"lan": Network(NetworkKind.BRIDGE, "br0"), "default": Network(NetworkKind.LIBVIRT, "default")}
)

CASES: dict[str, tuple[DomainPlan, HostFacts]] = {
    "emulated": (PLAN, HostFacts()),
    "kvm-with-seed": (replace(PLAN, accelerator="kvm", seed=DIRECTORY / "seed.iso"), HostFacts()),
    "isolated": (replace(PLAN, network="isolated"), HostFacts()),
    "libvirt-network": (PLAN, PRIVILEGED),
    "bridge": (replace(PLAN, network="lan"), PRIVILEGED),
    "uefi": (replace(PLAN, firmware="uefi"), HostFacts()),
    "test-driver": (PLAN, HostFacts(domain_type="test")),
    "hostile-text": (
        replace(
            PLAN,
            name="<name/>&amp;'\"",
            metadata="]]><disk/>&lt;\n\t\u2028é🦀",
            disk=Path("/a&b/<source file='/etc/shadow'/>"),
            directory=Path("/x'/><y"),
        ),
        HostFacts(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_xml_is_the_golden_one(name: str) -> None:
    xml = build_domain(*CASES[name]) + "\n"
    path = GOLDEN / f"{name}.xml"
    if os.environ.get("TWINSHARE_REGENERATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml)
    assert xml == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_what_was_written_is_read_back(name: str) -> None:
    plan, facts = CASES[name]
    assert parse_domain(build_domain(plan, facts)) == DomainDefinition(
        name=plan.name,
        cpu_cores=plan.cpu_cores,
        memory=plan.memory,
        accelerator=plan.accelerator if facts.domain_type is None else "qemu",
        metadata=plan.metadata,
        serial=str(plan.directory / "tty.sock"),
        netdev={NetworkKind.USER: "hostnet0", NetworkKind.RESTRICTED: "ts0"}.get(facts.networks[plan.network].kind),
        mac=plan.mac,
    )


def test_there_is_a_golden_file_for_each_case_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(CASES)


def test_text_never_becomes_markup() -> None:
    domain = ET.fromstring(build_domain(*CASES["hostile-text"]))  # noqa: S314 - we wrote it a line ago
    assert len(domain.findall("devices/disk")) == 1
    assert domain.find("devices/disk/source").get("file") == "/a&b/<source file='/etc/shadow'/>"  # type: ignore[union-attr]  # or it fails


@pytest.mark.parametrize("text", ["\0", "a\x1b[0m", "\r", "\ud800", "\x0b", "\uffff"])
def test_text_that_xml_cannot_hold_is_kept_all_the_same(text: str) -> None:
    assert parse_domain(build_domain(replace(PLAN, metadata=text), HostFacts())).metadata == text
    element = metadata_element(text).replace("<vm ", f"<vm xmlns='{METADATA_URI}' ")
    assert parse_domain(f"<domain><metadata>{element}</metadata></domain>").metadata == text


@pytest.mark.parametrize(
    "mac", ["52:54:00:12:34", "52:54:00:12:34:56,x=y", "52:54:00:12:34:56\n", "52-54-00-12-34-56", ""]
)
@pytest.mark.parametrize("network", ["default", "isolated"])
def test_what_is_no_mac_never_reaches_the_command_line(mac: str, network: str) -> None:
    with pytest.raises(ValueError, match="MAC"):
        build_domain(replace(PLAN, mac=mac, network=network), HostFacts())


def test_an_unknown_network_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        build_domain(replace(PLAN, network="elsewhere"), HostFacts())


def test_broken_metadata_is_handed_on_as_it_is() -> None:
    for text in ("%%%", "/w==", "é"):
        element = f"<vm xmlns='{METADATA_URI}' encoding='base64'>{text}</vm>"
        assert parse_domain(f"<domain><metadata>{element}</metadata></domain>").metadata == text


def test_a_foreign_domain_is_read_too() -> None:
    kept = parse_domain(
        "<domain type='kvm'><name>x</name><memory unit='GiB'>2</memory><vcpu>3</vcpu><devices/></domain>"
    )
    assert kept == DomainDefinition(
        name="x", cpu_cores=3, memory=2048, accelerator="kvm", metadata=None, serial=None, netdev=None, mac=None
    )
