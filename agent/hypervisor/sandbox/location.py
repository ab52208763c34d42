"""Where a sandbox is: its short stable path, its folders, and the record by which the next agent finds it again.

The path is a link outside and a bind mount inside, so one string names a file on both sides; it survives moving the
data directory, because the id is stored there. No process in the sandbox can write the record.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import msgspec

from ...environment import make_directory
from ...files import atomic_write

PARTS = ("vms", "images", "hypervisor")
_RECORD = "sandbox.json"


class Record(msgspec.Struct, kw_only=True):
    """What outlives the agent. Processes are `(pid, start time in ticks)`; `boot` tells whether they can be alive."""

    id: str
    path: str
    boot: str = ""
    kind: str = ""
    supervisor: tuple[int, int] | None = None
    network: int = 0  # inode of the network namespace
    egress: tuple[int, int] | None = None
    default_routes: tuple[str, ...] = ()  # that `egress` uses
    blocked: tuple[str, ...] = ()

    def save(self, data_dir: Path) -> None:
        atomic_write(data_dir / _RECORD, msgspec.json.encode(self))


def claim(data_dir: Path) -> Record:
    """Return the record of this data directory, with its link in place and its folders made. Raises: OSError."""
    data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    for part in PARTS:
        make_directory(data_dir / part, 0o700)
    record = _read(data_dir)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if record is None or _taken(record, data_dir):
        name = secrets.token_hex(4)
        record = Record(id=name, path=str(_base() / name))
    if record.boot != boot:
        record = Record(id=record.id, path=record.path, boot=boot)
    _link(Path(record.path), data_dir)
    record.save(data_dir)
    return record


def release(record: Record, data_dir: Path) -> None:
    """Remove the link; the id stays."""
    for path in (Path(record.path), socket_path(record)):
        path.unlink(missing_ok=True)
    record.supervisor = record.egress = None
    record.network, record.blocked = 0, ()
    record.save(data_dir)


def socket_path(record: Record) -> Path:
    return Path(f"{record.path}.sock")


def _read(data_dir: Path) -> Record | None:
    try:
        return msgspec.json.decode((data_dir / _RECORD).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _taken(record: Record, data_dir: Path) -> bool:
    """Return whether the id belongs to another directory, of which this one is a copy."""
    try:
        other = Path(record.path).readlink()
    except OSError:
        return False
    found = None if other == data_dir else _read(other)
    return found is not None and found.id == record.id


def _base() -> Path:
    if os.geteuid() == 0:
        return Path("/run/twinshare")
    given = Path(os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0])
    if _is_own_directory(given):
        return given
    given = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if _is_own_directory(given):  # `su` leaves that of another user
        return given / "twinshare"
    return Path(f"/tmp/twinshare-{os.geteuid()}")  # noqa: S108 - owner and mode are checked before use


def _is_own_directory(path: Path) -> bool:
    return path.is_absolute() and path.is_dir() and path.stat().st_uid == os.geteuid()


def _link(link: Path, data_dir: Path) -> None:
    base = link.parent
    make_directory(base, 0o755 if os.geteuid() == 0 else 0o700)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{base} belongs to somebody else or can be written by others")
    if os.geteuid() == 0 and not status.st_mode & 0o001:  # an earlier umask: the sandbox's user must pass
        base.chmod(0o755)
    for stale in base.iterdir():
        if stale.is_symlink() and not stale.exists():  # its data directory was deleted
            stale.unlink(missing_ok=True)
            Path(f"{stale}.sock").unlink(missing_ok=True)
    temporary = base / f".{link.name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(data_dir)
    temporary.rename(link)
