"""The parts that `tiny` is put together from, without booting it (tests/guest does)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from twinshare.agent.images.contract_samples import quiet
from twinshare.agent.images.tiny import build, disk, guest, initramfs, packages
from twinshare.agent.images.tiny.cpio import Archive
from twinshare.agent.images.tiny.elf import module_dependencies, needed_libraries
from twinshare.protocols.errors import RegistryFailed, Unsupported


def archive_names(data: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and content of each record of a newc archive."""
    found: list[tuple[str, int, bytes]] = []
    place = 0
    while True:
        assert data[place : place + 6] == b"070701"
        fields = [int(data[place + 6 + i * 8 : place + 14 + i * 8], 16) for i in range(13)]
        name = data[place + 110 : place + 110 + fields[11] - 1].decode()
        body = place + 110 + fields[11]
        body += -body % 4
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], data[body : body + fields[6]]))
        place = body + fields[6] + -fields[6] % 4


def test_archive_holds_what_was_put_in() -> None:
    archive = Archive()
    archive.file("a/b/c", b"12345", 0o755)
    archive.link("a/l", "b/c")
    archive.device("dev/null", 1, 3)
    assert archive_names(archive.encode()) == [
        ("a", 0o40755, b""),
        ("a/b", 0o40755, b""),
        ("a/b/c", 0o100755, b"12345"),
        ("a/l", 0o120777, b"b/c"),
        ("dev", 0o40755, b""),
        ("dev/null", 0o20600, b""),
    ]
    with pytest.raises(ValueError, match="already"):
        archive.file("a/l", b"")


def test_needed_libraries_are_those_that_the_loader_takes() -> None:
    path = shutil.which("qemu-img") or "/bin/sh"
    listed = subprocess.run(["objdump", "-p", path], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("objdump is not installed")
    expected = [line.split()[1] for line in listed.stdout.splitlines() if line.strip().startswith("NEEDED")]
    assert needed_libraries(Path(path).read_bytes()) == expected
    assert needed_libraries(b"#!/bin/sh\n") == []


def test_module_dependencies() -> None:
    assert module_dependencies(b"...\0license=GPL\0depends=a,b-c\0name=x\0") == ["a", "b-c"]
    assert module_dependencies(b"...\0depends=\0name=x\0") == []
    assert module_dependencies(b"nothing") == []


def _module(*depends: str) -> Callable[[], bytes]:
    return partial(bytes, b"\0depends=" + ",".join(depends).encode() + b"\0")


def test_modules_come_after_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "REQUIRED_MODULES", ("net", "inside"))
    monkeypatch.setattr(guest, "WANTED_MODULES", ("extra", "broken", "absent"))
    modules = {
        "net": _module("failover", "ring-buffer"),
        "failover": _module(),
        "ring_buffer": _module("core"),
        "core": _module(),
        "extra": _module("inside", "core"),
        "broken": _module("nowhere"),
    }
    chosen = initramfs.choose_modules(modules, frozenset({"inside"}))
    assert list(chosen) == ["failover", "core", "ring_buffer", "net", "extra"]
    monkeypatch.setattr(guest, "REQUIRED_MODULES", ("absent", "broken"))
    with pytest.raises(Unsupported, match="absent, broken"):
        initramfs.choose_modules(modules, frozenset())


def kernel(version: int = 0x20F, sectors: int = 4, flags: int = 1) -> bytes:
    data = bytearray(b"s" * 512 * (sectors + 1) + b"payload" * 1000)
    data[0x1F1] = sectors
    data[0x202:0x208] = b"HdrS" + version.to_bytes(2, "little")
    data[0x211] = flags
    return bytes(data)


def test_the_boot_sector_finds_every_part() -> None:
    image = disk.boot_disk(kernel(), b"files" * 999, "console=ttyS0")
    assert len(image) % (1 << 20) == 0
    assert image[510:512] == b"\x55\xaa"
    setup, setup_n, code, code_n, files, files_n, size = struct.unpack_from("<IHIIIII", image, 400)
    assert image[512:526] == b"console=ttyS0\0"
    assert image[code * 512 : code * 512 + 7000] == b"payload" * 1000
    assert image[files * 512 : files * 512 + size] == b"files" * 999
    assert (setup_n, code_n, files_n) == (5, 14, 10)
    assert struct.unpack_from("<I", image, setup * 512 + 0x21C) == (size,)
    assert struct.unpack_from("<I", image, setup * 512 + 0x228) == (0x8000,)


def test_the_second_partition_has_what_the_guest_reads_later() -> None:
    image = disk.boot_disk(kernel(), b"files" * 999, "console=ttyS0", b"later" * 300)
    (_, kind, start, sectors), (_, second_kind, second, second_sectors) = (
        struct.unpack_from("<4sB3xII", image, 446 + 16 * number) for number in (0, 1)
    )
    assert (kind, second_kind, start, start + sectors) == (0xDA, 0xDA, 1, second)
    assert second_sectors == 3
    assert image[second * 512 :].rstrip(b"\0") == b"later" * 300
    assert len(image) % (1 << 20) == 0
    assert image[446] == 0x80
    assert image[462] == 0
    without = disk.boot_disk(kernel(), b"files" * 999, "console=ttyS0")
    assert without[462:510] == bytes(48)


@pytest.mark.parametrize("bad", [b"", b"MZ" * 2000, kernel(version=0x203), kernel(sectors=80), kernel(flags=0)])
def test_what_is_no_kernel_is_refused(bad: bytes) -> None:
    with pytest.raises(disk.NotAKernelError):
        disk.boot_disk(bad, b"", "")


@pytest.mark.skipif(shutil.which("as") is None or shutil.which("ld") is None, reason="binutils are not installed")
def test_the_bytes_of_the_boot_sector_are_its_source(tmp_path: Path) -> None:
    source = Path(disk.__file__).with_name("boot_sector.s")
    linked = tmp_path / "boot.bin"
    subprocess.run(["as", "--32", source, "-o", tmp_path / "boot.o"], check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "_start", "--oformat", "binary", "-o", str(linked)]
    subprocess.run([*link, str(tmp_path / "boot.o")], check=True)
    assert linked.read_bytes()[:400].rstrip(b"\0") == disk.BOOT_SECTOR.rstrip(b"\0")
    assert len(disk.BOOT_SECTOR) <= 400


def fake_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Programs named apt_get and so on, found before the machine's own."""
    folder.mkdir()
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


async def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="no apt-get here"):
        await build.build_tiny(tmp_path, quiet)


async def test_an_archive_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tools(tmp_path / "bin", monkeypatch, apt_cache="exit 100", apt_get="echo $* >>$PWD/asked")
    with pytest.raises(Unsupported, match="busybox-static and qemu-guest-agent"):
        await build.build_tiny(tmp_path, quiet)
    assert "Dir::State::Lists" in (tmp_path / "asked").read_text(), "it reads the lists anew before it gives up"


async def test_an_archive_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tools(tmp_path / "bin", monkeypatch, apt_cache="exit 100", apt_get="echo 'E: no network' >&2; exit 100")
    with pytest.raises(RegistryFailed, match="no network"):
        await build.build_tiny(tmp_path, quiet)


async def test_a_package_that_is_not_what_the_list_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tools(tmp_path / "bin", monkeypatch, apt_get="echo other >x.deb")
    archive = packages.Packages(tmp_path)
    await archive.open()
    with pytest.raises(RegistryFailed, match="not what the archive"):
        await archive.fetch(packages.Package("x", "1", "0" * 64, ()))
    assert list((tmp_path / "debs").glob("x-*")) == []


def test_a_package_file_that_is_broken(tmp_path: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    (tmp_path / "x.deb").write_bytes(b"garbage")
    with pytest.raises(RegistryFailed, match="cannot be read"), packages.open_deb(tmp_path / "x.deb"):
        pass
