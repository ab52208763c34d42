"""What the sandbox's processes see and reach, and what to do where the kernel refuses such a sandbox."""

from __future__ import annotations

import os
from pathlib import Path

from .host_network import blocked_prefixes
from .identity import Identity
from .location import PARTS
from .namespaces import SandboxSpec

RESOLVER = "192.0.0.53"  # an unassigned address; pasta sends what goes there to the host's own resolver
# The host's top folders that stay visible; all others are empty in the sandbox, those of users among them.
_VISIBLE = frozenset(
    {"bin", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc", "sbin", "sys", "usr"}
)
_SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - private, empty file systems
_SYSCTLS = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "15000"),
)
_CONTAINER = "start the container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined"


def namespaced_spec(identity: Identity, path: str, data_dir: Path, join: int | None) -> SandboxSpec:
    """With namespaces: new ones, or those of the process `join`."""
    return SandboxSpec(
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        path=path,
        parts={part: str(data_dir / part) for part in PARTS},
        hide=_hidden(),
        scratch=_SCRATCH,
        resolver=RESOLVER,
        blocked=tuple(sorted(blocked_prefixes())),
        no_new_privs=not _has_apparmor(),
        join=join,
    )


def plain_spec(identity: Identity) -> SandboxSpec:
    """Without namespaces: at most another user."""
    return SandboxSpec(
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        namespaces=False,
        no_new_privs=not _has_apparmor(),
    )


def namespaces_remedy() -> str:
    """Return what makes this machine allow namespaces: a command, or a phrase that follows a semicolon."""
    for name, closed, opened in _SYSCTLS:
        if _sysctl(name) == closed and not (os.geteuid() == 0 and "unprivileged" in name):
            return f"run as root: sysctl -w {name}={opened}"
    return _CONTAINER if os.geteuid() == 0 or _in_container() else "run the agent as a system service"


def _hidden() -> tuple[str, ...]:
    folders = {
        entry.path for entry in os.scandir("/") if entry.is_dir(follow_symlinks=False) and entry.name not in _VISIBLE
    }
    return tuple(sorted(folders.difference(_SCRATCH)))


def _has_apparmor() -> bool:
    """Return whether libvirtd may be confined by its path, from which QEMU is started by leaving that confinement.

    Under `no_new_privs` the kernel refuses that. In the sandbox it would protect nothing: no capability, no other user.
    """
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def _in_container() -> bool:
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
