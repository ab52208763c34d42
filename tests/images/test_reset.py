"""`--reset-identity`: machine ids and host keys leave the image, and nothing else changes."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.images.stores import disk_store
from twinshare.agent.images import reset
from twinshare.agent.images.contract_samples import pieces, quiet
from twinshare.agent.images.partitions import parts_of
from twinshare.agent.images.port import Origin, Overlay
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import InvalidRequest, Unsupported
from twinshare.protocols.image import Image

MIB = 1 << 20
SIZE = 32 * MIB
START = 3 * MIB
ID = "0123456789abcdef0123456789abcdef\n"
SECRET = "the private key of one machine alone "

Build = Callable[[Path, Path], None]


def tree(folder: Path, *, system: bool = True) -> Path:
    """What is on the guest's file system."""
    root = folder / ("root" if system else "boot")
    if not system:
        root.mkdir()
        (root / "vmlinuz").write_text("kernel")
        return root
    for name in ("etc/ssh", "var/lib/dbus", "home"):
        (root / name).mkdir(parents=True)
    (root / "etc/machine-id").write_text(ID)
    (root / "var/lib/dbus/machine-id").write_text(ID)
    for kind in ("rsa", "ecdsa", "ed25519"):
        (root / f"etc/ssh/ssh_host_{kind}_key").write_text(SECRET * 70)
        (root / f"etc/ssh/ssh_host_{kind}_key").chmod(0o600)
        (root / f"etc/ssh/ssh_host_{kind}_key.pub").write_text("public")
    (root / "etc/ssh/sshd_config").write_text("kept")
    (root / "home/data").write_text("kept too")
    return root


def make_ext(disk: Path, root: Path, offset: int, size: int, kind: str = "ext4") -> None:
    with disk.open("ab") as file:
        file.truncate(max(SIZE, disk.stat().st_size))
    options: list[str | Path] = ["-q", "-F", "-t", kind, "-E", f"offset={offset}", "-d", root]
    tool("mke2fs", *options, disk, f"{size >> 10}k").check_returncode()


def patch(disk: Path, place: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(place)
        file.write(data)


def boot_record(*entries: tuple[int, int, int]) -> bytes:
    """One sector with up to four partitions: (type, first sector, sectors)."""
    table = b"".join(
        bytes([0, 0, 0, 0, kind, 0, 0, 0]) + struct.pack("<II", start, count) for kind, start, count in entries
    )
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def bare(folder: Path, disk: Path) -> None:
    make_ext(disk, tree(folder), 0, SIZE)


def old_ext(folder: Path, disk: Path) -> None:
    make_ext(disk, tree(folder), 0, SIZE, "ext2")


def mbr(folder: Path, disk: Path) -> None:
    """A boot partition, which has no /etc, and the root after it."""
    make_ext(disk, tree(folder, system=False), MIB, 2 * MIB, "ext3")
    make_ext(disk, tree(folder), START, 20 * MIB)
    patch(disk, 0, boot_record((0x83, MIB >> 9, 2 * MIB >> 9), (0x83, START >> 9, 20 * MIB >> 9)))


def logical(folder: Path, disk: Path) -> None:
    """The root inside an extended partition, whose chain then leads back to its beginning."""
    make_ext(disk, tree(folder), START, 20 * MIB)
    patch(disk, 0, boot_record((0x05, MIB >> 9, 30 * MIB >> 9)))
    patch(disk, MIB, boot_record((0x83, (START - MIB) >> 9, 20 * MIB >> 9), (0x05, 0, 1)))


def gpt(folder: Path, disk: Path) -> None:
    make_ext(disk, tree(folder), START, 20 * MIB)
    kind = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
    entry = kind + bytes(16) + struct.pack("<QQQ", START >> 9, ((START + 20 * MIB) >> 9) - 1, 0) + bytes(72)
    header = b"EFI PART" + struct.pack("<IIII", 0x10000, 92, 0, 0) + struct.pack("<QQ", 1, (SIZE >> 9) - 1)
    header = (header.ljust(72, b"\0") + struct.pack("<QIII", 2, 128, 128, zlib.crc32(entry))).ljust(512, b"\0")
    patch(disk, 0, boot_record((0xEE, 1, (SIZE >> 9) - 1)) + header + bytes(128 * 13) + entry)


BUILDS: dict[str, tuple[Build, int]] = {
    "no partitions": (bare, 0),
    "ext2": (old_ext, 0),
    "MBR": (mbr, START),
    "a logical partition": (logical, START),
    "GPT": (gpt, START),
}


async def capture(store: DiskImageStore, folder: Path, disk: Path, name: str, *, reset: bool = True) -> Image:
    """Make an image of a VM that stands on the disk."""
    content = await trio.to_thread.run_sync(disk.read_bytes)
    base = await store.add_image("base", pieces(content), report=quiet, replace=True)
    overlay = folder / f"{name}.qcow2"
    await store.make_overlay(base.digest, overlay, base.size)
    return await store.add_disk(
        name, Overlay(overlay, base.digest), base.size, report=quiet, origin=Origin("VM"), reset=reset
    )


def cut_out(disk: Path, offset: int, target: Path) -> Path:
    target.write_bytes(disk.read_bytes()[offset:])
    return target


def tool(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Programs of e2fsprogs, which are not on every user's path."""
    found = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", env=found)


def debugfs(system: Path, *commands: str) -> str:
    return "".join(tool("debugfs", "-R", one, system).stdout for one in commands)


@pytest.mark.parametrize("kind", BUILDS)
async def test_the_identity_is_gone_and_nothing_else(tmp_path: Path, kind: str) -> None:
    build, offset = BUILDS[kind]
    disk = tmp_path / "disk.raw"
    disk.touch()
    build(tmp_path, disk)
    async with disk_store(tmp_path / "images") as store:
        image = await capture(store, tmp_path, disk, "made")
        found = store.base_path(image.digest)
        assert found.stat().st_mode & 0o777 == 0o444
        assert list((tmp_path / "images/partial").iterdir()) == []
        system = cut_out(found, offset, tmp_path / "system")
        before = cut_out(store.base_path((await store.get_image("base")).digest), offset, tmp_path / "before")
    assert ID in debugfs(before, "cat /etc/machine-id"), "the VM keeps its own"
    assert debugfs(system, "cat /etc/machine-id") == ""
    assert "/100644/0/0/machine-id/0/" in debugfs(system, "ls -p /etc")
    assert "machine-id" not in debugfs(system, "ls -p /var/lib/dbus")
    assert "ssh_host" not in debugfs(system, "ls -p /etc/ssh")
    assert debugfs(system, "cat /etc/ssh/sshd_config", "cat /home/data") == "keptkept too"
    assert SECRET.encode() not in system.read_bytes(), "nor in what is free now"
    assert SECRET.encode() in before.read_bytes()
    checked = tool("e2fsck", "-fn", system)
    assert checked.returncode == 0, checked.stdout


async def test_a_disk_without_anything_to_reset_stays_as_it_is(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.touch()
    bare(tmp_path, disk)
    async with disk_store(tmp_path / "images") as store:
        first = await capture(store, tmp_path, disk, "first")
        copy = tmp_path / "copy.raw"
        copy.write_bytes(store.base_path(first.digest).read_bytes())
        assert (await capture(store, tmp_path, copy, "second")).digest == first.digest
        assert (await capture(store, tmp_path, copy, "third", reset=False)).digest == first.digest


async def test_a_journal_is_played_back_first(tmp_path: Path) -> None:
    """What the guest had only written to its journal comes in, and does not come back over what was reset."""
    disk, block = tmp_path / "disk.raw", tmp_path / "block"
    disk.touch()
    mbr(tmp_path, disk)
    system = cut_out(disk, START, tmp_path / "system")
    said = debugfs(system, "blocks /home/data", "blocks /etc/machine-id").split()
    block.write_bytes(b"from the journal".ljust(1024, b"\0"))
    script = tmp_path / "script"
    script.write_text(f"journal_open\njournal_write -b {said[0]},{said[1]} {block}\njournal_close\n")
    block.write_bytes(b"from the journal".ljust(2048, b"\0"))
    tool("debugfs", "-w", "-f", script, system).check_returncode()
    assert "needs_recovery" in debugfs(system, "features")
    patch(disk, START, system.read_bytes())
    async with disk_store(tmp_path / "images") as store:
        image = await capture(store, tmp_path, disk, "made")
        after = cut_out(store.base_path(image.digest), START, tmp_path / "after")
    assert "needs_recovery" not in debugfs(after, "features")
    assert debugfs(after, "cat /home/data") == "from the"
    assert debugfs(after, "cat /etc/machine-id") == ""


@pytest.mark.parametrize(
    ("magic", "place", "message"),
    [(b"XFSB", 0, "xfs"), (b"_BHRfS_M", 0x10040, "btrfs"), (b"", 0, "no ext2"), (b"LVM2 001", 0x218, "lvm")],
)
async def test_other_file_systems_are_refused_and_no_image_is_made(
    tmp_path: Path, magic: bytes, place: int, message: str
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(8 * MIB))
    patch(disk, MIB + place, magic)
    patch(disk, 0, boot_record((0x83, MIB >> 9, 7 * MIB >> 9)))
    async with disk_store(tmp_path / "images") as store:
        with pytest.raises(InvalidRequest, match=message):
            await capture(store, tmp_path, disk, "made")
        assert [image.name for image in await store.list_images()] == ["base"]
        assert list((tmp_path / "images/partial").iterdir()) == []


@pytest.mark.parametrize("harm", ["torn superblock", "a file system without /etc", "larger than its partition"])
async def test_what_cannot_be_reset_is_no_image(tmp_path: Path, harm: str) -> None:
    disk = tmp_path / "disk.raw"
    disk.touch()
    if harm.startswith("a file"):
        make_ext(disk, tree(tmp_path, system=False), 0, SIZE)
    else:
        mbr(tmp_path, disk)
    if harm.startswith("torn"):
        patch(disk, START + 1024, b"\xff" * 50)
    if harm.startswith("larger"):
        patch(disk, 0, boot_record((0x83, START >> 9, 1 * MIB >> 9)))
    async with disk_store(tmp_path / "images") as store:
        with pytest.raises(InvalidRequest, match="cannot be reset") as caught:
            await capture(store, tmp_path, disk, "made")
        assert str(tmp_path) not in caught.value.message
        assert [image.name for image in await store.list_images()] == ["base"]
        assert list((tmp_path / "images/partial").iterdir()) == []


async def test_links_of_the_guest_lead_nowhere(tmp_path: Path) -> None:
    """A guest's links are followed inside its own file system alone, if at all."""
    outside = tmp_path / "outside"
    outside.write_text(ID)
    disk, root = tmp_path / "disk.raw", tree(tmp_path)
    disk.touch()
    (root / "var/lib/dbus/machine-id").unlink()
    (root / "var/lib/dbus/machine-id").symlink_to(outside)
    (root / "etc/ssh/ssh_host_dsa_key").symlink_to(outside)
    (root / "etc/ssh/ssh_host_a b;rm").write_text("odd")
    make_ext(disk, root, 0, SIZE)
    async with disk_store(tmp_path / "images") as store:
        image = await capture(store, tmp_path, disk, "made")
        listing = debugfs(store.base_path(image.digest), "ls -p /etc/ssh", "ls -p /var/lib/dbus")
    assert "ssh_host_dsa_key" in listing
    assert "/machine-id/" in listing
    assert outside.read_text() == ID


async def test_without_the_tools_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reset, "_PATH", str(tmp_path))
    async with disk_store(tmp_path / "images") as store:
        with pytest.raises(Unsupported, match="e2fsprogs"):
            await store.add_disk(
                "x", Overlay(tmp_path / "no", "blake3:0"), MIB, report=quiet, origin=Origin("VM"), reset=True
            )


async def test_a_table_of_lies_is_read_to_its_end(tmp_path: Path) -> None:
    """Whatever stands in the sectors, the parts lie on the disk and there are not many of them."""
    disk = tmp_path / "disk.raw"
    for kind in (0xEE, 0x05, 0x83):
        for fill in (0x00, 0x01, 0x7F, 0xFF):
            disk.write_bytes(bytes([fill]) * (2 * MIB))
            patch(disk, 0, boot_record((kind, 1, 0xFFFFFFFF), (kind, 0, 5), (kind, 0xFFFFFFFF, 7)))
            patch(disk, 512, b"EFI PART")
            with disk.open("rb") as file:
                parts = await trio.to_thread.run_sync(parts_of, file.fileno(), 2 * MIB)
            assert 0 < len(parts) <= 200
            assert all(0 <= part.offset < part.offset + part.length <= 2 * MIB for part in parts)
