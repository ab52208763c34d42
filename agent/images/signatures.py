"""What the first bytes of a file say it is: a disk that a machine can use, or something else that has a name.

Magic numbers are those of the formats' own documents, as `file` and blkid know them, too.
"""

from __future__ import annotations

HEAD = 0x11000
"""How many bytes of a disk tell what it is."""

_OTHER_DISKS = {
    b"KDMV": "a VMDK",
    b"# Disk DescriptorFile": "a VMDK",
    b"conectix": "a VHD",
    b"vhdxfile": "a VHDX",
    b"<<< ": "a VDI",
    b"QED\0": "a QED",
    b"LUKS\xba\xbe": "a LUKS",
    b"WithoutFreeSpace": "a Parallels",
    b"WithouFreSpacExt": "a Parallels",
}
_OTHER_FILES = {
    b"PK\x03\x04": "a ZIP",
    b"BZh": "a bzip2",
    b"7z\xbc\xaf\x27\x1c": "a 7z",
    b"Rar!": "a RAR",
    b"\x1f\x8b": "a twice compressed",
    b"\x28\xb5\x2f\xfd": "a twice compressed",
    b"\xfd7zXZ": "a twice compressed",
    b"\x7fELF": "an ELF",
    b"%PDF": "a PDF",
    b"!<arch>": "a package or archive",
    b"0707": "a cpio",
    b"\x89PNG": "a PNG",
}
_NO_DISK = "not a raw or qcow2 disk"
_CONVERT = f"{_NO_DISK}; convert it with 'qemu-img convert' first"
_HTML = (b"<!doctype html", b"<html")
_TEXT = frozenset(b"\t\n\r\f\x1b") | frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100))
_ISO = 0x8001
_EL_TORITO = 0x8800

_BOOT_SECTOR = (510, b"\x55\xaa")
# A partition table without a boot sector, or a file system (a volume) on the whole disk.
_DISKS = [
    (512, b"EFI PART"),
    (4096, b"EFI PART"),  # GPT of a disk with sectors of 4 KiB
    (0, b"ER\x02\x00"),  # Apple partition map
    (508, b"\xda\xbe"),  # Sun disk label
    (512, b"\x57\x45\x56\x82"),  # BSD disk label
    (1080, b"\x53\xef"),  # ext2, ext3, ext4
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),  # btrfs
    (0x10034, b"ReIsErFs"),
    (0x10034, b"ReIsEr2Fs"),
    (0x10034, b"ReIsEr3Fs"),
    (0x8000, b"JFS1"),
    (3, b"NTFS    "),
    (0x36, b"FAT"),
    (0x52, b"FAT32"),
    (0, b"hsqs"),  # squashfs
    (1024, b"\xe2\xe1\xf5\xe0"),  # erofs
    (1024, b"\x10\x20\xf5\xf2"),  # f2fs
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),  # bcachefs
    (0x2000 + 1372, b"\x54\x19\x01\x00"),  # UFS1
    (0x10000 + 1372, b"\x19\x01\x54\x19"),  # UFS2
    (4086, b"SWAPSPACE2"),
    *((sector * 512, b"LABELONE") for sector in range(4)),  # a physical volume of LVM
]


def foreign_format(head: bytes) -> str:
    """Return what a file is that begins with `head` and is another format of disks or of files; empty for none."""
    for magic, what in _OTHER_DISKS.items():
        if head.startswith(magic):
            return f"{what} file, {_CONVERT}"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe" and not _has(head, _BOOT_SECTOR):
        return f"a VDI file, {_CONVERT}"
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            return f"{what} file, {_NO_DISK}"
    what = _file_without_magic(head)
    return f"{what}, {_NO_DISK}" if what else ""


def _file_without_magic(head: bytes) -> str:
    """A boot sector is never taken for something else."""
    if _has(head, _BOOT_SECTOR):
        return ""
    if head[257:262] == b"ustar":
        return "a tar archive (an OVA is one; unpack it and import the disk in it)"
    if head[_ISO : _ISO + 5] == b"CD001":
        return "" if _boots_as_cd(head) else "an ISO image that does not boot"
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_HTML):
        return "a web page"
    if start.startswith(b"<?xml"):
        return "an XML document"
    printable = sum(byte < 0x80 for byte in head[:512])
    return "a text" if b"\n" in head[:512] and _TEXT.issuperset(head[:512]) and printable * 2 > len(head[:512]) else ""


def is_raw_disk(head: bytes) -> bool:
    """Return whether the first `HEAD` bytes hold a boot sector, a partition table or a known file system, or nothing.

    Zeros are a blank disk, as an installer wants one.
    """
    return not any(head) or _has(head, _BOOT_SECTOR) or _boots_as_cd(head) or any(_has(head, at) for at in _DISKS)


def _boots_as_cd(head: bytes) -> bool:
    return head[_EL_TORITO : _EL_TORITO + 6] == b"\0CD001"


def _has(head: bytes, magic: tuple[int, bytes]) -> bool:
    offset, expected = magic
    return head.startswith(expected, offset)
