"""What an enclosure is to be like: who lives in it, what they see, and where they cannot go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..inside.walls import Walls
from .addresses import unreachable
from .place import PARTS

RESOLVER = "192.0.0.53"  # inside, an address of no one; pasta passes what is sent there to the machine's own resolver
# What is seen inside of the machine's top folders; all others are empty there, and so is what is the user's own.
_SEEN = frozenset(
    {"bin", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc", "sbin", "sys", "usr"}
)
_SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - empty ones of its own


@dataclass(frozen=True)
class Identity:
    """Who processes inside are. `user` is None for the agent's own user."""

    user: str | None
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def behind_walls(identity: Identity, path: str, data_dir: Path, join: int | None) -> Walls:
    """With namespaces: new ones, or those in which the process `join` lives."""
    return Walls(
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        path=path,
        parts={part: str(data_dir / part) for part in PARTS},
        hide=_hidden(),
        scratch=_SCRATCH,
        resolver=RESOLVER,
        fence=tuple(sorted(unreachable())),
        no_new_privs=not _has_apparmor(),
        join=join,
    )


def without_walls(identity: Identity) -> Walls:
    """Another user at most."""
    return Walls(
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        namespaces=False,
        no_new_privs=not _has_apparmor(),
    )


def _hidden() -> tuple[str, ...]:
    folders = {
        entry.path for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False) and entry.name not in _SEEN
    }
    return tuple(sorted(folders.difference(_SCRATCH)))


def _has_apparmor() -> bool:
    """Whether libvirtd may be confined by its path, from which QEMU is started by leaving that confinement.

    Under `no_new_privs` the kernel refuses that. Inside nothing is to be gained anyway: no capability, no other user.
    """
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False
