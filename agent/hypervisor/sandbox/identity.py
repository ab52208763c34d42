"""The user that the sandbox's processes run as, and what that user owns and may reach."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ....protocols.errors import HypervisorDown
from ...environment import tool_environment


@dataclass(frozen=True)
class Identity:
    """The user of the sandbox's processes. `user` is None for the agent's own user."""

    user: str | None
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def chown(self, path: Path) -> None:
        """Give a file or a tree to this user. Links are not followed: whatever lies there may be hostile. Blocks."""
        if self.user is None:
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        if path.is_symlink() or not path.is_dir():
            return
        for _, folders, files, folder in os.fwalk(path, follow_symlinks=False):
            for name in (*folders, *files):
                os.chown(name, self.uid, self.gid, dir_fd=folder, follow_symlinks=False)


def sandbox_identity(user: str) -> Identity:
    """Return the agent's own user, or for root the system user `user`, made if missing. Raises: HypervisorDown."""
    if os.geteuid() != 0:
        return Identity(None, os.geteuid(), os.getegid())
    account = _system_user(user)
    if not is_mapped(account.pw_uid):
        raise HypervisorDown(
            f"Here root cannot become {user}, the user that virtual machines run as: this container maps no such user. "
            "Run the agent as an ordinary user."
        )
    return Identity(user, account.pw_uid, account.pw_gid, _kvm_group())


def is_mapped(uid: int) -> bool:
    """Return whether such a user exists for this process; in a rootless container there may be root alone."""
    rows = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in rows)


def blocking_directory(path: Path, uid: int, groups: Iterable[int]) -> Path | None:
    """Return the first folder on the way to `path` that the user may not pass, or None."""
    allowed = set(groups)
    for folder in (*reversed(path.parents), path):
        status = folder.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in allowed else 0
        if not status.st_mode >> shift & 1:
            return folder
    return None


def _system_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    command = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent"]
    command += ["--shell", "/usr/sbin/nologin", name]
    try:
        made = subprocess.run(
            command, capture_output=True, timeout=30, check=False, env=tool_environment(), umask=0o022
        )
        return pwd.getpwnam(name)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    except KeyError:
        reason = made.stderr.decode(errors="replace").strip()
    raise HypervisorDown(f"The system user {name} cannot be made ({reason}); run: {' '.join(command)}")


def _kvm_group() -> tuple[int, ...]:
    """The group that may use /dev/kvm, if there is one apart from root's."""
    try:
        status = Path("/dev/kvm").stat()
    except OSError:
        return ()
    return (status.st_gid,) if status.st_gid != 0 and status.st_mode & 0o060 == 0o060 else ()
