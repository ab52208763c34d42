"""Which firmware a VM gets: what was asked for, else what its image needs; refused where it cannot boot here."""

from __future__ import annotations

from ...protocols.errors import InvalidRequest, Unsupported
from ...protocols.image import Image
from ..hypervisor.port import Features
from ..images.boot import BootNeeds

FIRMWARE_LABEL, ARCHITECTURE_LABEL = "firmware", "architecture"
"""Labels of an image by which whoever publishes it says what its disk needs."""
_PACKAGES = {"aarch64": "qemu-efi-aarch64"}


def choose_firmware(asked: str, image: Image, needs: BootNeeds, features: Features) -> str:
    """Return `bios` or `uefi`. `asked` is the spec's word, empty for what the image needs.

    Raises: InvalidRequest for an image of another architecture, Unsupported for a firmware that is not installed here.
    """
    architecture = image.labels.get(ARCHITECTURE_LABEL) or needs.architecture or features.architecture
    if architecture != features.architecture:
        raise InvalidRequest(
            f"the image '{image.name or image.digest}' is for {architecture}, and VMs of this node are "
            f"{features.architecture}",
            path="image",
        )
    needed = "uefi" if features.architecture == "aarch64" else needs.firmware
    labelled = image.labels.get(FIRMWARE_LABEL, "")
    firmware = asked or (labelled if labelled in {"bios", "uefi"} else needed)
    if firmware in features.firmwares:
        return firmware
    if firmware == "bios":
        raise Unsupported(f"a VM of {features.architecture} cannot boot by a BIOS; ask for firmware 'uefi'")
    package = _PACKAGES.get(features.architecture, "ovmf")
    raise Unsupported(
        f"the VM needs UEFI, and no firmware for it is installed here: install {package} and restart the agent"
    )
