"""Damaged and foreign files never become a disk: a qcow2 that was cut anywhere, archives, pages, other formats."""

import gzip
import io
import lzma
import random
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import pieces, quiet, raw_disk, with_boot_sector
from twinshare.agent.images.index import index_bytes
from twinshare.agent.images.partial import Partial
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.qcow2 import data_end
from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.reference import parse_reference

MIB = 1 << 20
needs_mkfs = pytest.mark.skipif(not (shutil.which("mke2fs") and shutil.which("mkswap")), reason="no e2fsprogs")
DATA = bytes((n * 7 + n // 251 + n // 65521) % 256 for n in range(MIB)) + bytes(2 * MIB)


def qcow2(folder: Path, *options: str) -> bytes:
    raw, made = folder / "disk.raw", folder / "disk.qcow2"
    raw.write_bytes(DATA)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, made], check=True)
    return made.read_bytes()


@pytest.mark.parametrize("options", [[], ["-c"], ["-o", "cluster_size=4k"]], ids=["plain", "compressed", "4k"])
async def test_a_qcow2_that_was_cut_is_refused(tmp_path: Path, options: list[str]) -> None:
    whole = qcow2(tmp_path, *options)
    async with disk_store(tmp_path / "images") as store:
        digest = (await store.add_image("whole", pieces(whole), report=quiet)).digest
        for cut in (len(whole) // 2, len(whole) - 70_000, len(whole) - 5000, len(whole) - 4096, len(whole) - 1024):
            with pytest.raises(InvalidRequest, match="damaged"):
                await store.add_image("cut", pieces(whole[:cut]), report=quiet)
        assert [image.digest for image in await store.list_images()] == [digest]


MIXED = bytes(MIB) + random.Random(5).randbytes(MIB) + b"compresses" * 6000


@pytest.mark.parametrize(
    "options",
    [["-c"], ["-c", "-o", "cluster_size=2M"], ["-o", "extended_l2=on"], ["-c", "-o", "compat=0.10"]],
    ids=["mixed", "2M", "extended", "old"],
)
@pytest.mark.parametrize("tail", [b"", random.Random(6).randbytes(1536)], ids=["compressed last", "plain last"])
async def test_a_qcow2_that_lost_its_last_byte_of_data_is_refused(
    tmp_path: Path, options: list[str], tail: bytes
) -> None:
    """Clusters that do not compress lie among the ones that do, and the last one may be written in part."""
    (tmp_path / "mixed.raw").write_bytes(with_boot_sector(MIXED + tail))
    file = tmp_path / "mixed.qcow2"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(tmp_path / "mixed.raw"), str(file)]
    await trio.run_process(convert)
    end = data_end(file)
    whole = file.read_bytes()
    async with disk_store(tmp_path / "images") as store:
        assert (await store.add_image("whole", pieces(whole), report=quiet)).size == len(MIXED + tail) + -len(
            tail + MIXED
        ) % 512
        for cut in (end - 1, end - 513):
            with pytest.raises(InvalidRequest, match="damaged"):
                await store.add_image("cut", pieces(whole[:cut]), report=quiet)


@pytest.mark.parametrize("size", ["1M", "1G", "20G", "900G"])
async def test_an_empty_qcow2_as_qemu_leaves_it_is_whole(tmp_path: Path, size: str) -> None:
    await trio.run_process(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", size])
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("empty", pieces((tmp_path / "disk").read_bytes()), report=quiet)
        assert image.size == int(size[:-1]) << (20 if size.endswith("M") else 30)


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """A disk of 1 MiB with these partitions: kind, first sector, sectors."""
    table = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return with_boot_sector(bytes(446) + table.ljust(66, b"\0") + random.Random(7).randbytes(MIB - 512))


def gpt(last: int) -> bytes:
    disk = bytearray(mbr((0xEE, 1, 0xFFFFFFFF)))
    disk[512:1024] = (b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 128, 128)).ljust(512, b"\0")
    disk[1024:17408] = (b"\1" * 32 + struct.pack("<QQ", 34, last)).ljust(16384, b"\0")
    return bytes(disk)


def file_system(*command: str) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(16 * MIB)
        subprocess.run([*command, file.name], check=True, capture_output=True)
        return Path(file.name).read_bytes()


def cd() -> bytes:
    disk = bytearray(iso(boots=True))
    disk[0x8000] = 1
    disk[0x8050:0x8054], disk[0x8080:0x8082] = struct.pack("<I", MIB // 2048), struct.pack("<H", 2048)
    return bytes(disk)


RAW_DISKS: dict[str, Callable[[], bytes]] = {
    "mbr": lambda: mbr((0x83, 64, 960), (0x83, 1024, 1024)),
    "extended": lambda: mbr((0x83, 64, 960), (0x0F, 1024, 1024)),
    "gpt": lambda: gpt(2047),
    "cd": cd,
    "ext4": lambda: file_system("mke2fs", "-q", "-t", "ext4", "-F"),
}


@pytest.mark.parametrize("kind", RAW_DISKS)
async def test_a_raw_disk_that_was_cut_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "ext4" and not shutil.which("mke2fs"):
        pytest.skip("no e2fsprogs")
    whole = RAW_DISKS[kind]()
    async with disk_store(tmp_path / "images") as store:
        assert (await store.add_image("whole", pieces(whole), report=quiet)).size == len(whole)
        for cut in (len(whole) - 512, len(whole) * 3 // 4):
            with pytest.raises(InvalidRequest, match=f"reach to {len(whole)}: it was cut off"):
                await store.add_image("cut", pieces(whole[:cut]), report=quiet)
        taken = await store.add_image("cut", pieces(whole[:-512]), report=quiet, origin=Origin(raw=True))
        assert taken.size == len(whole) - 512


def archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("machine.ovf", "disk.vmdk"):
            entry = tarfile.TarInfo(name)
            entry.size = 5000
            tar.addfile(entry, io.BytesIO(bytes(5000)))
    return content.getvalue()


def iso(*, boots: bool) -> bytes:
    disk = bytearray(MIB)
    disk[0x8000:0x8006] = b"\x01CD001"
    disk[0x8800:0x8806] = b"\x00CD001" if boots else b"\xffCD001"
    return bytes(disk)


FOREIGN = {
    "an ova": (archive(), "tar archive"),
    "a gzipped tar": (gzip.compress(archive()), "tar archive"),
    "gzip in gzip": (gzip.compress(gzip.compress(raw_disk(1))), "twice compressed"),
    "a vdi": (
        b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(0x40, b"\0") + b"\x7f\x10\xda\xbe" + bytes(900),
        "VDI",
    ),
    "another vdi": (bytes(0x40) + b"\x7f\x10\xda\xbe" + bytes(900), "VDI"),
    "a vmdk": (b"KDMV" + bytes(900), "VMDK"),
    "an iso without boot": (iso(boots=False), "does not boot"),
    "a page": (b"\n<!DOCTYPE html><html><body>404</body></html>" + bytes(5000), "web page"),
    "an ovf": (b'<?xml version="1.0"?><Envelope/>', "XML"),
    "a script": (b"#!/bin/sh\necho hello\n" * 100, "text"),
    "a program": (b"\x7fELF" + bytes(900), "ELF"),
    "bzip2": (b"BZh9" + bytes(range(256)) * 4, "bzip2"),
    "random bytes": (random.Random(1).randbytes(100_000), "cannot be recognised"),
    "random bytes in xz": (lzma.compress(random.Random(2).randbytes(100_000)), "cannot be recognised"),
    "a film": (b"\0\0\0\x20ftypisom" + random.Random(3).randbytes(5000), "cannot be recognised"),
    "a few bytes": (b"\x01\x02\x03", "cannot be recognised"),
}
FOREIGN["a readme"] = (("Grüße aus der Ferne\n" * 100).encode(), "text")


@pytest.mark.parametrize("kind", FOREIGN)
async def test_foreign_files_are_refused_by_what_they_are(tmp_path: Path, kind: str) -> None:
    content, what = FOREIGN[kind]
    async with disk_store(tmp_path / "images") as store:
        with pytest.raises(InvalidRequest, match=what):
            await store.add_image("foreign", pieces(content), report=quiet)
        assert list(await store.list_images()) == []


async def test_an_iso_that_boots_is_a_disk(tmp_path: Path) -> None:
    async with disk_store(tmp_path / "images") as store:
        assert (await store.add_image("iso", pieces(iso(boots=True)), report=quiet)).size == MIB


def at(offset: int, magic: bytes) -> bytes:
    """A disk of random bytes but for one magic number."""
    disk = bytearray(random.Random(4).randbytes(200_000))
    disk[offset : offset + len(magic)] = magic
    return bytes(disk)


RECOGNISED = {
    "boot sector": at(510, b"\x55\xaa"),
    "gpt of 4 KiB sectors": at(4096, b"EFI PART"),
    "ext": at(1080, b"\x53\xef"),
    "xfs": at(0, b"XFSB"),
    "btrfs": at(0x10040, b"_BHRfS_M"),
    "lvm": at(512, b"LABELONE"),
    "squashfs": at(0, b"hsqs"),
    "ufs2": at(0x10000 + 1372, b"\x19\x01\x54\x19"),
    "blank": bytes(200_000),
}


@pytest.mark.parametrize("kind", RECOGNISED)
async def test_a_raw_disk_is_taken_by_what_is_on_it(tmp_path: Path, kind: str) -> None:
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("disk", pieces(RECOGNISED[kind]), report=quiet)
        assert store.base_path(image.digest).read_bytes()[:200_000] == RECOGNISED[kind]
        assert image.labels == {}


@needs_mkfs
async def test_file_systems_as_their_tools_make_them_are_recognised(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    async with disk_store(tmp_path / "images") as store:
        for number, tool in enumerate((["mke2fs", "-qF"], ["mkswap", "-q"])):
            disk.write_bytes(random.Random(5).randbytes(8 * MIB))
            await trio.run_process([*tool, disk], capture_stdout=True, capture_stderr=True)
            await store.add_image(f"fs{number}", pieces(disk.read_bytes()), report=quiet)


async def test_who_says_that_it_is_a_raw_disk_is_believed_and_the_image_says_so(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(100_000)
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("raw", pieces(gzip.compress(content)), report=quiet, origin=Origin(raw=True))
        assert store.base_path(image.digest).read_bytes()[:100_000] == content
        assert image.labels == {"raw": "true"}


async def test_chunks_of_others_that_make_no_disk_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    content = random.Random(6).randbytes(300_000).ljust(300_032, b"\0")

    async def fetch(partial: Partial) -> None:
        for _, (offset, length, digest) in list(partial.gaps.wanted()):
            partial.fill([(digest, content[offset : offset + length])])

    async with disk_store(tmp_path / "images") as store:
        name, index = parse_reference("theirs"), index_bytes(content)
        with pytest.raises(InvalidRequest, match="cannot be recognised"):
            await store.add_chunks(index, fetch, ImportRequest(name, Origin("a peer"), quiet))
        assert list(store.partials.iterdir()) == []
        for request in (
            ImportRequest(name, Origin("a peer", labels={"raw": "true"}), quiet),
            ImportRequest(parse_reference("again"), Origin("a peer", raw=True), quiet),
        ):
            assert (await store.add_chunks(index, fetch, request)).digest == index.digest
