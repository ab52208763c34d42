"""Where a sandbox is: its short stable path, its folders, and the record by which the next agent finds it again.

The path is a link outside and a bind mount inside, so one string names a file on both sides. It survives moving the
data directory, because the id is stored there. No process in the sandbox can write the record.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from ...environment import make_directory
from ...files import atomic_write
from . import processes

PARTS = ("vms", "images", "hypervisor")
_RECORD = "enclosure.json"
"""Named, as the fields of `Record` on disk, by the first version: a node can go back to it."""
_UNKNOWN = (0, 0)
_ON_DISK = {"supervisor": "keeper", "egress": "outlet", "default_routes": "ways", "blocked": "fenced"}
_CURE = "stop that node and its VMs, or delete this copy; nothing was changed"


class DirectoryInUse(Exception):
    """The data directory is a copy of one whose node or VMs run; the message says which. Nothing was changed."""


class Record(msgspec.Struct, kw_only=True, rename=_ON_DISK):
    """What outlives the agent. Processes are `(pid, start time in ticks)`; `boot` tells whether they can be alive.

    `directory` is the device and inode of the data directory: another one holds a copy of the record.
    """

    id: str
    path: str
    boot: str = ""
    directory: tuple[int, int] = _UNKNOWN
    kind: str = ""
    supervisor: tuple[int, int] | None = None
    network: int = 0  # inode of the network namespace
    egress: tuple[int, int] | None = None
    default_routes: tuple[str, ...] = ()  # that `egress` uses
    blocked: tuple[str, ...] = ()

    def save(self, data_dir: Path) -> None:
        atomic_write(data_dir / _RECORD, msgspec.json.encode(self))


def claim(data_dir: Path) -> Record:
    """Return the record of this data directory, with its link in place and its folders made.

    The id is copied with the directory, and so are the VMs' absolute paths. So a copy keeps the id, and is refused
    while the original or its VMs run: libvirt would take their processes for its own and kill them.
    Raises: DirectoryInUse, OSError.
    """
    data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    status = data_dir.stat()
    directory = (status.st_dev, status.st_ino)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = _read(data_dir)
    if record is None:
        name = secrets.token_hex(4)
        record = Record(id=name, path=str(_base() / name))
    if record.directory == _UNKNOWN:  # new, or written by a version that did not note it
        record.directory = directory
    _refuse_copy(record, data_dir, foreign=record.boot == boot and record.directory != directory)
    if record.boot != boot or record.directory != directory:
        record = Record(id=record.id, path=record.path, boot=boot, directory=directory)
    for part in PARTS:
        make_directory(data_dir / part, 0o700)
    restore_link(record, data_dir)
    record.save(data_dir)
    return record


def release(record: Record, data_dir: Path) -> None:
    """Remove the link and the socket, unless the link leads to another directory by now; the id stays."""
    if _target(record) in (None, data_dir):
        for path in (Path(record.path), socket_path(record)):
            path.unlink(missing_ok=True)
    record.supervisor = record.egress = None
    record.network, record.blocked = 0, ()
    with suppress(OSError):  # a disk that cannot be written; the next start finds no such processes
        record.save(data_dir)


def restore_link(record: Record, data_dir: Path) -> bool:
    """Make the link to the data directory if it is missing or wrong; return whether it was. Raises: OSError."""
    if _target(record) == data_dir:
        return False
    link = Path(record.path)
    _make_base(link.parent)
    temporary = link.parent / f".{link.name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(data_dir)
    temporary.rename(link)
    return True


def has_processes(record: Record) -> bool:
    """Return whether the supervisor of this record or a process in its namespaces runs."""
    return processes.alive(record.supervisor) or bool(namespace_pids(record))


def namespace_pids(record: Record) -> frozenset[int]:
    """Return the processes in the record's namespaces, the supervisor among them."""
    if record.kind != "namespaces" or not record.network:
        return frozenset()
    # The kernel reuses the inodes of dead namespaces: another node's processes may have ours.
    found = processes.in_network(record.network)
    return frozenset(pid for pid in found if processes.has_mounted(pid, f"{record.path}/vms"))


def socket_path(record: Record) -> Path:
    return Path(f"{record.path}.sock")


def _read(data_dir: Path) -> Record | None:
    try:
        return msgspec.json.decode((data_dir / _RECORD).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _refuse_copy(record: Record, data_dir: Path, *, foreign: bool) -> None:
    """Raises: DirectoryInUse. `foreign`: the record was written in this boot, for another directory."""
    other = _target(record)
    rival = None if other is None or _is_same(other, data_dir) else _read(other)
    if other is not None and rival is not None and rival.id == record.id and (use := _use_of(other, rival)):
        raise DirectoryInUse(f"{data_dir} is a copy of {other}, {use}: {_CURE}")
    if foreign and has_processes(record):
        raise DirectoryInUse(f"{data_dir} is a copy of another data directory, whose VMs run: {_CURE}")


def _use_of(data_dir: Path, record: Record) -> str | None:
    """Return what runs of another node, None if nothing does."""
    if has_processes(record):
        return "whose VMs run"
    try:
        lock = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "whose agent runs"
    finally:
        os.close(lock)
    return None


def _target(record: Record) -> Path | None:
    """Return what the link leads to, None when there is no link."""
    try:
        return Path(record.path).readlink()
    except OSError:
        return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


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


def _make_base(base: Path) -> None:
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
