"""The firmware of a VM: what was asked for, then what the image's label says, then what its disk needs."""

from datetime import UTC, datetime

import pytest

from twinshare.agent.hypervisor.port import Features
from twinshare.agent.images.boot import BootNeeds
from twinshare.agent.vm.firmware import choose_firmware
from twinshare.protocols.errors import InvalidRequest, Unsupported
from twinshare.protocols.image import Image

UEFI = BootNeeds("uefi", "x86_64")


def image(**labels: str) -> Image:
    now = datetime.now(UTC)
    return Image(name="web", tag="1", digest="blake3:0", size=1, allocated=1, created_at=now, labels=labels)


def features(architecture: str = "x86_64", *firmwares: str) -> Features:
    return Features(
        name="", version="", uri="", accelerator="qemu", networks=(), host_cpus=1, architecture=architecture,
        firmwares=firmwares or ("bios", "uefi"),
    )  # fmt: skip


def test_the_spec_then_the_label_then_the_disk() -> None:
    assert choose_firmware("", image(), BootNeeds(), features()) == "bios"
    assert choose_firmware("", image(), UEFI, features()) == "uefi"
    assert choose_firmware("", image(firmware="bios"), UEFI, features()) == "bios"
    assert choose_firmware("", image(firmware="nonsense"), UEFI, features()) == "uefi"
    assert choose_firmware("uefi", image(firmware="bios"), BootNeeds(), features()) == "uefi"
    assert choose_firmware("", image(), BootNeeds(), features("aarch64", "uefi")) == "uefi"


def test_what_cannot_boot_here_is_refused_with_what_to_do() -> None:
    with pytest.raises(Unsupported, match="install ovmf"):
        choose_firmware("", image(), UEFI, features("x86_64", "bios"))
    with pytest.raises(Unsupported, match="qemu-efi-aarch64"):
        choose_firmware("", image(), BootNeeds(), features("aarch64", "none"))
    with pytest.raises(Unsupported, match="ask for firmware 'uefi'"):
        choose_firmware("bios", image(), BootNeeds(), features("aarch64", "uefi"))
    with pytest.raises(InvalidRequest, match="is for aarch64"):
        choose_firmware("", image(architecture="aarch64"), UEFI, features())
    with pytest.raises(InvalidRequest, match="is for x86_64"):
        choose_firmware("", image(), UEFI, features("aarch64", "uefi"))
