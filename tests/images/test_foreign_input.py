"""Damaged and foreign files never become a disk: a qcow2 that was cut anywhere, archives, pages, other formats."""

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import trio

from tests.images.stores import disk_store
from twinshare.agent.images.contract import pieces, quiet, raw_disk
from twinshare.protocols.errors import InvalidRequest

MIB = 1 << 20
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


@pytest.mark.parametrize("size", ["1M", "1G", "20G"])
async def test_an_empty_qcow2_as_qemu_leaves_it_is_whole(tmp_path: Path, size: str) -> None:
    await trio.run_process(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", size])
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("empty", pieces((tmp_path / "disk").read_bytes()), report=quiet)
        assert image.size == int(size[:-1]) << (20 if size.endswith("M") else 30)


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
