"""Why this machine refuses private namespaces, and what would change its mind."""

from __future__ import annotations

import os
from pathlib import Path

_SWITCHES = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "15000"),
)
_CONTAINER = "start the container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined"


def remedy() -> str:
    """A command, or what to do; written to follow a semicolon."""
    for name, closed, opened in _SWITCHES:
        if _setting(name) == closed and not (os.geteuid() == 0 and "unprivileged" in name):
            return f"run as root: sysctl -w {name}={opened}"
    return _CONTAINER if os.geteuid() == 0 or _in_container() else "run the agent as a system service"


def _setting(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def _in_container() -> bool:
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
