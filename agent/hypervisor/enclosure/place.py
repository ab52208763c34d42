"""Where an enclosure is: its short stable path, its user, its folders, and the record by which it is found again.

The path is a link outside and a bind mount inside, so one string names a file in both worlds; it survives moving the
data directory, because the id lies in there. The record is the agent's alone: nobody inside can write it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ....protocols.errors import HypervisorDown

PARTS = ("vms", "images", "hypervisor")
_RECORD = "enclosure.json"


class Record(msgspec.Struct, kw_only=True):
    """What outlives the agent. Processes are `(pid, start time in ticks)`; `boot` tells whether they can be alive."""

    id: str
    path: str
    boot: str = ""
    kind: str = ""
    keeper: tuple[int, int] | None = None
    network: int = 0  # inode of the network namespace
    outlet: tuple[int, int] | None = None
    ways: tuple[str, ...] = ()
    fenced: tuple[str, ...] = ()

    def save(self, data_dir: Path) -> None:
        temporary = data_dir / f".{_RECORD}.new"
        temporary.write_bytes(msgspec.json.encode(self))
        temporary.chmod(0o600)
        temporary.rename(data_dir / _RECORD)


def claim(data_dir: Path) -> Record:
    """The record of this data directory, with its link in place and its folders made. Raises: OSError."""
    for part in PARTS:
        (data_dir / part).mkdir(mode=0o700, parents=True, exist_ok=True)
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
    """Take the link away; the id stays."""
    link = Path(record.path)
    for path in (link, socket_of(record)):
        path.unlink(missing_ok=True)
    record.keeper = record.outlet = None
    record.network, record.fenced = 0, ()
    record.save(data_dir)


def socket_of(record: Record) -> Path:
    return Path(f"{record.path}.sock")


def account(name: str) -> pwd.struct_passwd:
    """The system user, made if it is missing. Raises: HypervisorDown."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    words = [
        "useradd",
        "--system",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
        name,
    ]
    try:
        made = subprocess.run(words, capture_output=True, timeout=30, check=False)
        return pwd.getpwnam(name)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    except KeyError:
        reason = made.stderr.decode(errors="replace").strip()
    raise HypervisorDown(f"The system user {name} cannot be made ({reason}); run: {' '.join(words)}")


def is_mapped(uid: int) -> bool:
    """Whether such a user exists for this process; in a rootless container there may be root alone."""
    rows = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in rows)


def give(path: Path, uid: int, gid: int) -> None:
    """Make a file or a tree the user's. Links are never followed: what lies in there may be hostile."""
    os.chown(path, uid, gid, follow_symlinks=False)
    if path.is_symlink() or not path.is_dir():
        return
    for _, folders, files, folder in os.fwalk(path, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)


def barrier(path: Path, uid: int, groups: Iterable[int]) -> Path | None:
    """The first folder on the way to `path` that the user may not pass, or None."""
    allowed = set(groups)
    for folder in (*reversed(path.parents), path):
        status = folder.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in allowed else 0
        if not status.st_mode >> shift & 1:
            return folder
    return None


def _read(data_dir: Path) -> Record | None:
    try:
        return msgspec.json.decode((data_dir / _RECORD).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _taken(record: Record, data_dir: Path) -> bool:
    """Whether the id belongs to another directory: this one was copied from it."""
    try:
        other = Path(record.path).readlink()
    except OSError:
        return False
    found = None if other == data_dir else _read(other)
    return found is not None and found.id == record.id


def _base() -> Path:
    if os.geteuid() == 0:
        return Path("/run/twinshare")
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given.partition(":")[0])
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "twinshare"
    return Path(f"/tmp/twinshare-{os.geteuid()}")  # noqa: S108 - owner and mode are checked before use


def _link(link: Path, data_dir: Path) -> None:
    base = link.parent
    base.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    status = base.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{base} belongs to somebody else or can be written by others")
    for stale in base.iterdir():
        if stale.is_symlink() and not stale.exists():  # its data directory was deleted
            stale.unlink(missing_ok=True)
            Path(f"{stale}.sock").unlink(missing_ok=True)
    temporary = base / f".{link.name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(data_dir)
    temporary.rename(link)
