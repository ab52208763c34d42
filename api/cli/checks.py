"""What a machine must have to run VMs, and what would be unsafe: looked at without changing anything."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import platform
import shutil
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from ...agent.config import Config
from ...agent.hypervisor.cpu import cpu_can_virtualize
from .node import read_running_agent

# Daemons live in sbin, which is not on an ordinary user's PATH.
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
_EMULATORS = {
    "x86_64": ("qemu-system-x86_64", "qemu-system-x86"),
    "aarch64": ("qemu-system-aarch64", "qemu-system-arm"),
}
_SECRETS = ("identity.key", "admin.token")
# The smallest VM: 64 MiB of memory and a disk of 1 GiB.
_MEMORY, _DISK = 64, 1


class State(StrEnum):
    """`MISSING` and `BROKEN` keep VMs from running; the first is mended by installing something."""

    OK = "ok"
    NOTE = "note"
    UNSAFE = "unsafe"
    MISSING = "missing"
    BROKEN = "broken"


class Check(msgspec.Struct, frozen=True):
    """One finding. `cure` is a command or a sentence, `package` the Debian package that is missing."""

    name: str
    state: State
    found: str
    cure: str = ""
    package: str = ""


def check_machine(config: Config, data_dir: Path) -> Iterator[Check]:
    """Everything, in the order in which it should be mended."""
    if not config.hypervisor.uri:
        yield from _own_hypervisor()
        yield _acceleration(config)
        yield from _sandbox(config, data_dir)
    else:
        yield Check(name="hypervisor", state=State.NOTE, found=f"{config.hypervisor.uri}; not looked into")
    yield _room(config, data_dir)
    yield _directory(data_dir)
    yield from _secrets(data_dir)
    yield _exposure(config)
    yield _agent(data_dir)


def _own_hypervisor() -> Iterator[Check]:
    emulator, package = _EMULATORS.get(platform.machine(), _EMULATORS["x86_64"])
    yield _program("libvirt daemon", ("virtqemud", "libvirtd"), "libvirt-daemon")
    yield _file(
        "libvirt's QEMU driver", "libvirt/connection-driver/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu"
    )
    yield _program("QEMU", (emulator,), package)
    yield _program("qemu-img", ("qemu-img",), "qemu-utils")
    if shutil.which("debugfs", path=_PATH) is None:
        found = "not installed: `image create --reset-identity` needs it"
        yield Check("e2fsprogs", State.NOTE, found, cure="apt-get install e2fsprogs")
    if importlib.util.find_spec("libvirt"):
        yield Check("libvirt for Python", State.OK, "installed")
    else:
        cure = "scripts/setup, or: pip install libvirt-python"
        yield Check("libvirt for Python", State.MISSING, "not installed", cure=cure)


def _program(name: str, commands: tuple[str, ...], package: str) -> Check:
    found = next(filter(None, (shutil.which(command, path=_PATH) for command in commands)), None)
    return _present(name, found, package)


def _file(name: str, pattern: str, package: str) -> Check:
    places = (*Path("/usr").glob(f"lib*/{pattern}"), *Path("/usr/lib").glob(f"*/{pattern}"))
    return _present(name, str(places[0]) if places else None, package)


def _present(name: str, found: str | None, package: str) -> Check:
    if found:
        return Check(name, State.OK, found)
    return Check(name, State.MISSING, "not installed", package=package)


def _acceleration(config: Config) -> Check:
    """A /dev/kvm that opens proves little: without vmx or svm it hangs ordinary guests."""
    device = Path("/dev/kvm")
    capable = cpu_can_virtualize()
    if device.exists() and capable and os.access(device, os.R_OK | os.W_OK):
        return Check("acceleration", State.OK, "KVM")
    if device.exists() and capable:
        found, cure = "/dev/kvm may not be opened by this user", 'sudo usermod -aG kvm "$USER", then log in again'
    else:
        found, cure = "no KVM here: VMs run in emulation, which is slow", "switch on virtualisation in the firmware"
    if config.hypervisor.allow_emulation:
        return Check("acceleration", State.NOTE, found, cure=cure)
    return Check(
        name="acceleration", state=State.BROKEN, found=f"{found}; hypervisor.allow_emulation is false", cure=cure
    )


def _sandbox(config: Config, data_dir: Path) -> Iterator[Check]:
    from ...agent.hypervisor.probe import probe_sandbox  # costs half a second, which only `doctor` may spend

    settings = config.hypervisor
    for finding in probe_sandbox(data_dir, kind=settings.sandbox, user=settings.user):
        bad = State.BROKEN if finding.fatal else State.UNSAFE if finding.unsafe else State.NOTE
        state = State.OK if finding.ok else bad
        yield Check(finding.name, state, finding.message, cure=finding.remedy, package=finding.package)


def _room(config: Config, data_dir: Path) -> Check:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1 << 20) - config.hypervisor.reserve_memory
    disk = shutil.disk_usage(_nearest(data_dir)).free // (1 << 30) - config.hypervisor.reserve_disk
    found = f"{max(memory, 0)} MiB memory and {max(disk, 0)} GiB disk for VMs"
    if memory >= _MEMORY and disk >= _DISK:
        return Check("room", State.OK, found)
    cure = "make room, or lower hypervisor.reserve_memory and hypervisor.reserve_disk"
    return Check("room", State.BROKEN, found, cure=cure)


def _nearest(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _directory(data_dir: Path) -> Check:
    place = _nearest(data_dir)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Check("data directory", State.OK, str(data_dir))
    cure = "choose another with --data-dir, or make it writable"
    return Check("data directory", State.BROKEN, f"{place} cannot be written by this user", cure=cure)


def _secrets(data_dir: Path) -> Iterator[Check]:
    for name in _SECRETS:
        path = data_dir / name
        try:
            mode = path.stat().st_mode & 0o777
        except OSError:
            continue
        if mode & 0o077:
            yield Check(
                name=name, state=State.UNSAFE, found=f"others may use it (mode {mode:o})", cure=f"chmod 600 {path}"
            )


def _exposure(config: Config) -> Check:
    api = config.api
    host = api.listen.rpartition(":")[0].strip("[]")
    if api.listen.startswith("unix:") or host == "localhost" or _is_loopback(host):
        return Check("api", State.OK, f"{api.listen}, this machine alone")
    if api.tls_cert and api.tls_key:
        return Check("api", State.OK, f"{api.listen}, with TLS")
    if api.insecure:
        cure = "set api.tls_cert and api.tls_key, and api.insecure = false"
        return Check("api", State.UNSAFE, f"{api.listen}: tokens travel in clear", cure=cure)
    cure = "set api.tls_cert and api.tls_key"
    return Check("api", State.BROKEN, f"{api.listen} needs TLS: other machines reach it", cure=cure)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _agent(data_dir: Path) -> Check:
    agent = read_running_agent(data_dir)
    if agent is None:
        return Check("agent", State.NOTE, "not running", cure="twinshare agent")
    return Check("agent", State.OK, f"{agent.name} runs at {agent.api_url}")
