"""A Debian of the tests' own: systemd, cloud-init, openssh-server and python3, as a cloud image has them.

It is built once from the machine's package archive (three minutes) and kept in `.cache/guests` under the digest of this
file and of the kernel's package. Kernel and initramfs are those of `tiny`'s packages, started by `tiny`'s boot sector.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import trio

from tests.guest.disks import CACHE, tiny_disk
from twinshare.agent.images.tiny.cpio import Archive
from twinshare.agent.images.tiny.disk import boot_disk
from twinshare.agent.images.tiny.packages import open_deb

TOOLS = ("mmdebstrap", "mke2fs", "dpkg-deb", "tar", "chroot")
PACKAGES = (
    "systemd-sysv", "udev", "kmod", "dbus", "cloud-init", "openssh-server", "python3", "rsync", "iproute2", "netbase",
)  # fmt: skip
LEFT_OUT = ("man", "doc", "locale")
MIB = 1 << 20
SIZE = 640 * MIB
COMMAND_LINE = "console=tty0 console=ttyS0,115200 quiet panic=-1 edd=off nokaslr mitigations=off"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
for module in $(cat /modules.order); do insmod "/modules/$module"; done
while [ ! -b /dev/vda2 ]; do sleep 0.1; done
mount -t ext4 /dev/vda2 /root
exec switch_root /root /sbin/init
"""
SET_UP = """set -e
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id "$1"/etc/resolv.conf
: >"$1"/etc/machine-id
echo '/dev/vda2 / ext4 defaults 0 1' >"$1"/etc/fstab
echo 'datasource_list: [NoCloud, None]' >"$1"/etc/cloud/cloud.cfg.d/90_datasource.cfg
chroot "$1" systemctl enable systemd-networkd ssh
"""


def codename() -> str:
    """The Debian release of this machine, whose archive it can reach; empty on another distribution."""
    found = platform.freedesktop_os_release()
    return found.get("VERSION_CODENAME", "") if found.get("ID") == "debian" else ""


def can_build() -> bool:
    return bool(codename()) and os.getuid() == 0 and all(map(shutil.which, TOOLS))


async def debian_disk() -> Path:
    """Return the raw disk, built on first use."""
    await tiny_disk()
    return await trio.to_thread.run_sync(_keep)


def _keep() -> Path:
    kernel = max((CACHE / "debs").glob("linux-image-*.deb"), key=lambda deb: deb.stat().st_mtime)
    key = hashlib.sha256(Path(__file__).read_bytes() + kernel.name.encode() + codename().encode()).hexdigest()
    disk = CACHE / f"debian-{key[:16]}.raw"
    if not disk.exists():
        for former in CACHE.glob("debian-*.raw"):
            former.unlink()
        _build(kernel, disk)
    return disk


def _build(kernel: Path, disk: Path) -> None:
    root = CACHE / "debian"
    shutil.rmtree(root, ignore_errors=True)
    try:
        _install(root)
        version = _add_modules(root, kernel)
        content = boot_disk(_kernel_image(kernel), _initramfs(root, version), COMMAND_LINE, _file_system(root))
        new = disk.with_suffix(".new")
        new.write_bytes(content)
        new.rename(disk)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _install(root: Path) -> None:
    """What a release's own installer makes of the packages, without what is only recommended."""
    run(
        "mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase",
        '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
        f"--include={','.join(PACKAGES)}", codename(), str(root),
    )  # fmt: skip
    run("sh", "-c", SET_UP, "sh", str(root))


def _add_modules(root: Path, kernel: Path) -> str:
    """Add the kernel's modules. Returns its version."""
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2" ./lib/modules'
    run("sh", "-c", unpack, "sh", str(kernel), str(root))
    [version] = [folder.name for folder in (root / "lib/modules").iterdir()]
    run("chroot", str(root), "depmod", version)
    return version


def _kernel_image(kernel: Path) -> bytes:
    with open_deb(kernel) as deb:
        return deb.read(next(name for name in deb.names if name.startswith("boot/vmlinuz-")))


def _initramfs(root: Path, version: str) -> bytes:
    """busybox, and the modules that the root file system needs."""
    modules: dict[str, bytes] = {}
    for wanted in ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic"):
        for line in run("chroot", str(root), "modprobe", "-S", version, "--show-depends", wanted).splitlines():
            kind, path = line.split()[:2]
            if kind == "insmod":
                modules.setdefault(Path(path).name, (root / path.lstrip("/")).read_bytes())
    [busybox] = (CACHE / "debs").glob("busybox-static-*.deb")
    archive = Archive()
    for folder in ("dev", "root"):
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    with open_deb(busybox) as deb:
        archive.file("bin/busybox", deb.read(next(name for name in deb.names if name.endswith("bin/busybox"))), 0o755)
    archive.file("init", INIT.encode(), 0o755)
    for name, data in modules.items():
        archive.file(f"modules/{name}", data)
    archive.file("modules.order", "".join(f"{name}\n" for name in modules).encode())
    return archive.encode()


def _file_system(root: Path) -> bytes:
    image = CACHE / "debian.ext4"
    try:
        run("mke2fs", "-q", "-t", "ext4", "-d", str(root), "-F", str(image), f"{SIZE // MIB}M")
        return image.read_bytes()
    finally:
        image.unlink(missing_ok=True)


def run(*command: str) -> str:
    """Return what a program prints. Raises: AssertionError with what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"
    return done.stdout
