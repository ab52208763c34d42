"""Builds the disk of `tiny` from the packages that this machine's apt offers, and keeps it until these change."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath

import trio

from ....protocols.errors import Unsupported
from ....protocols.operation import Progress
from ...files import atomic_write, discard, disk_errors_named
from ...guest_program.bundle import program_zip
from ..port import Report
from . import guest
from .disk import NotAKernelError, boot_disk
from .initramfs import build_initramfs, build_ssh_archive, find_modules
from .packages import Deb, Package, Packages, open_deb

# The smallest kernel first: Debian's, then Ubuntu's.
KERNELS = ("linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual")
PROGRAMS = ("busybox-static", "qemu-guest-agent", "python3-minimal")
SSH_PACKAGES = ("dropbear-bin", "openssh-sftp-server")
"""What the guest has where the archive has both."""
REF = "tiny:latest"
_INTERPRETER = re.compile(r"usr/bin/python3\.\d+")
_PYTHON_LIBRARY = re.compile(r"usr/lib/python3\.\d+/.*\.py")


async def build_tiny(scratch: Path, report: Report) -> Path:
    """The raw disk of `tiny`, a file in the folder `scratch`, where packages and former builds are kept.

    Raises: Unsupported where it cannot be built; RegistryFailed when packages cannot be fetched; InsufficientResources.
    """
    if platform.machine() != "x86_64":
        raise Unsupported(f"tiny is built for x86_64, and this machine is {platform.machine()}")
    archive = Packages(scratch)
    with disk_errors_named("building tiny"):
        await archive.open()
        report(Progress(message="asking for packages"))
        kernels, others = await _choose(archive)
        disk = scratch / f"tiny-{_key([*kernels, *others])}.raw"
        if await trio.Path(disk).exists():
            return disk
        debs = []
        for number, package in enumerate([*kernels, *others]):
            report(Progress(done=number, total=len(kernels) + len(others), message=f"fetching {package.name}"))
            debs.append(await archive.fetch(package))
        report(Progress(done=len(debs), total=len(debs), message="putting the disk together"))
        await trio.to_thread.run_sync(_assemble, debs, disk)
    return disk


async def _choose(archive: Packages) -> tuple[list[Package], list[Package]]:
    """The packages of the kernel, and the others; the package lists are read anew if they know too little."""
    found = await archive.show([*KERNELS, *PROGRAMS, *SSH_PACKAGES])
    if not _enough(found):
        await archive.refresh()
        found = await archive.show([*KERNELS, *PROGRAMS, *SSH_PACKAGES])
    if not _enough(found):
        raise Unsupported(
            f"tiny needs {' and '.join(PROGRAMS)} and one of {', '.join(KERNELS)}, and apt knows no such packages here"
        )
    kernel = next(found[name] for name in KERNELS if name in found)
    kernels = await _follow(archive, [kernel], lambda name: name.startswith(("linux-image-", "linux-modules-")), 3)
    agent = await _follow(archive, [found["qemu-guest-agent"]], lambda name: name.startswith("lib"), 2)
    # Its dependency is the interpreter, python3.N-minimal.
    python = await _follow(archive, [found["python3-minimal"]], lambda name: name.startswith("python3."), 1)
    python = await _follow(archive, python[1:], _is_library, 1)
    ssh = [found[name] for name in SSH_PACKAGES if name in found]
    ssh = await _follow(archive, ssh, _is_library, 2) if len(ssh) == len(SSH_PACKAGES) else []
    chosen = {package.name: package for package in [found["busybox-static"], *agent, *python, *ssh]}
    return kernels[1:], list(chosen.values())


def _is_library(name: str) -> bool:
    return name.startswith(("lib", "zlib"))


def _enough(found: dict[str, Package]) -> bool:
    return all(name in found for name in PROGRAMS) and any(name in found for name in KERNELS)


async def _follow(
    archive: Packages, start: Sequence[Package], wanted: Callable[[str], bool], depth: int
) -> list[Package]:
    """The packages of `start` and the wanted ones that they depend on, up to `depth` steps away."""
    found = {package.name: package for package in start}
    latest = list(start)
    for _ in range(depth):
        names = sorted({name for package in latest for name in package.depends if wanted(name) and name not in found})
        latest = sorted((await archive.show(names)).values(), key=lambda package: package.name) if names else []
        found |= {package.name: package for package in latest}
    return list(found.values())


def _key(packages: Sequence[Package]) -> str:
    """Names the build by all that goes into it: the packages and our own files."""
    digest = hashlib.sha256()
    for package in packages:
        digest.update(f"{package.name} {package.sha256}\n".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    digest.update(program_zip())
    return digest.hexdigest()[:16]


def _assemble(debs: Sequence[Path], disk: Path) -> None:
    """Blocking. Former builds go when the new one is there."""
    with ExitStack() as stack:
        packages = [stack.enter_context(open_deb(deb)) for deb in debs]
        kernel = _only(packages, lambda path: path.startswith("boot/vmlinuz-"))
        programs = {
            "bin/busybox": _only(packages, lambda path: path in {"bin/busybox", "usr/bin/busybox"}),
            "usr/sbin/qemu-ga": _only(packages, lambda path: path == "usr/sbin/qemu-ga"),
            "usr/bin/python3": _only(packages, lambda path: _INTERPRETER.fullmatch(path) is not None),
        }
        ssh_programs = _ssh_programs(packages)
        libraries = _libraries(packages)
        files = build_initramfs(
            {name: read for deb in packages for name, read in find_modules(deb.names, deb.read).items()},
            _builtin(packages),
            programs,
            libraries,
            _python_library(packages) | {guest.GUEST_PROGRAM: program_zip()},
            guest.SCRIPTS | (guest.SSH_SCRIPTS if ssh_programs else {}),
        )
        ssh = build_ssh_archive(ssh_programs, libraries, programs.values()) if ssh_programs else b""
    try:
        content = boot_disk(kernel, files, guest.COMMAND_LINE, ssh)
    except NotAKernelError as error:
        raise Unsupported(f"tiny cannot be built: {error}") from None
    atomic_write(disk, content, durable=False)
    for former in disk.parent.glob("tiny-*.raw"):
        if former != disk:
            discard(former)


def _only(packages: Sequence[Deb], wanted: Callable[[str], bool]) -> bytes:
    for deb in packages:
        for name in deb.names:
            if wanted(name):
                return deb.read(name)
    raise Unsupported("tiny cannot be built: the packages do not hold the files they are known for")


def _ssh_programs(packages: Sequence[Deb]) -> dict[str, bytes]:
    """The files of the SSH server by their paths in the guest; none when a package is not there."""
    return {
        guest.SSH_PROGRAMS[name]: deb.read(name) for deb in packages for name in deb.names if name in guest.SSH_PROGRAMS
    }


def _builtin(packages: Sequence[Deb]) -> frozenset[str]:
    """The modules that are part of the kernel itself."""
    found: set[str] = set()
    for deb in packages:
        for name in deb.names:
            if name.endswith("/modules.builtin"):
                lines = deb.read(name).decode().splitlines()
                found |= {PurePosixPath(line).stem.replace("-", "_") for line in lines}
    return frozenset(found)


def _libraries(packages: Sequence[Deb]) -> dict[str, Callable[[], bytes]]:
    """The shared libraries in the folders where the loader looks."""
    return {
        PurePosixPath(name).name: partial(deb.read, name)
        for deb in packages
        for name in deb.names
        if ".so" in name and PurePosixPath(name).parent.name == "x86_64-linux-gnu"
    }


def _python_library(packages: Sequence[Deb]) -> dict[str, bytes]:
    """The modules of Python's minimal library; those that are shared libraries would need OpenSSL."""
    found = {name: deb.read(name) for deb in packages for name in deb.names if _PYTHON_LIBRARY.fullmatch(name)}
    # The interpreter complains at its start when it has no folder of this name.
    folders = {f"{name.removesuffix('os.py')}lib-dynload/empty": b"" for name in found if name.endswith("/os.py")}
    return found | folders
