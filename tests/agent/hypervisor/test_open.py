"""Which hypervisor a URI names, and what is said when it is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from twinshare.agent.hypervisor.open import open_hypervisor, parse_memory_uri
from twinshare.agent.hypervisor.png import png_from_ppm
from twinshare.protocols.errors import HypervisorDown


def test_a_fake_uri_tells_path_and_behaviour() -> None:
    behaviour, path = parse_memory_uri("fake:///a%20b/domains.json?shutdown_after=never&delay=0.5")
    assert (path, behaviour.shutdown_after, behaviour.delay) == (Path("/a b/domains.json"), None, 0.5)
    assert parse_memory_uri("fake://")[1] is None
    for uri in ("fake://?delay=never", "fake://?hang=1", "fake://?boots_in=x"):
        with pytest.raises(ValueError, match=r"."):
            parse_memory_uri(uri)


async def test_without_the_binding_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("twinshare.agent.hypervisor.libvirt")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(HypervisorDown, match="pip install libvirt-python"):
        async with open_hypervisor("test:///default"):
            pass


@pytest.mark.parametrize(
    "uri", ["qemu+unix:///system?socket=/nonexistent/sock", "nonsense:///x", "qemu:///embed?root=/proc/x"]
)
async def test_a_libvirt_that_is_not_there_is_down(uri: str) -> None:
    with pytest.raises(HypervisorDown):
        async with open_hypervisor(uri):
            pass


async def test_the_memory_adapter_is_opened_by_its_uri(tmp_path: Path) -> None:
    async with open_hypervisor(f"fake://{tmp_path}/x.json", accelerator="kvm") as hypervisor:
        assert (hypervisor.features.name, hypervisor.features.accelerator) == ("fake", "kvm")


def test_an_old_picture_becomes_a_png() -> None:
    assert png_from_ppm(b"P6\n2 1\n255\n" + bytes(6)).startswith(b"\x89PNG")
    for broken in (b"P6\n2 1\n255\n" + bytes(5), b"P5\n2 1\n255\n" + bytes(2), b""):
        with pytest.raises(ValueError, match="PPM"):
            png_from_ppm(broken)
