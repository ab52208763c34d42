"""What a disk needs to boot is read from it: UEFI where there is a loader for it and nothing for a BIOS."""

from pathlib import Path

import pytest

from tests.guest.disks import tick_disk
from tests.guest.uefi import uefi_disk
from twinshare.agent.images.boot import BootNeeds, read_boot_needs

MBR_ESP = bytes(446) + bytes(4) + b"\xef\0\0\0" + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")

DISKS = {
    "uefi": (uefi_disk(), BootNeeds("uefi", "x86_64")),
    "uefi of another architecture": (uefi_disk(loader=b"BOOTAA64EFI"), BootNeeds("uefi", "aarch64")),
    "a loader of an unknown name": (uefi_disk(loader=b"GRUB    EFI"), BootNeeds("uefi", "")),
    "both, by a BIOS boot partition": (uefi_disk(bios_boot=True), BootNeeds("bios", "x86_64")),
    "both, by code in the boot record": (uefi_disk(boot_code=b"\xeb\xfe"), BootNeeds("bios", "x86_64")),
    "an ESP in an MBR": (
        MBR_ESP.ljust(510, b"\0") + b"\x55\xaa" + uefi_disk()[512:1024] + bytes(9 << 20),
        BootNeeds("uefi", ""),
    ),
    "a boot sector": (tick_disk(), BootNeeds()),
    "nothing": (bytes(1 << 20), BootNeeds()),
    "a table that lies": (uefi_disk()[:70_000], BootNeeds()),
}


@pytest.mark.parametrize("kind", DISKS)
def test_what_a_disk_needs(tmp_path: Path, kind: str) -> None:
    disk, needs = DISKS[kind]
    (tmp_path / "disk").write_bytes(disk)
    assert read_boot_needs(tmp_path / "disk") == needs
