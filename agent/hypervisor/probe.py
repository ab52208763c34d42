"""Finds out what sandbox this machine allows, for `doctor`; it changes nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..environment import PATH, tool_environment
from .sandbox.identity import blocking_directory, is_mapped
from .sandbox.policy import namespaces_remedy
from .sandbox.spawn import program

TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy` is a command or a sentence, `package` what is to be installed; both are empty when `ok`.

    While a `fatal` one is not ok no VM can run; while an `unsafe` one is not, a VM may do more than it should.
    """

    name: str
    ok: bool
    message: str
    remedy: str = ""
    package: str = ""
    fatal: bool = False
    unsafe: bool = False


def probe_sandbox(
    data_dir: Path, *, kind: Literal["auto", "namespaces", "plain"] = "auto", user: str = "twinshare"
) -> Iterator[Finding]:
    """Yield what a sandbox in `data_dir` has and lacks. Takes some 50 ms: it tries namespaces in another process."""
    refusal = None if kind == "plain" else _refusal()
    namespaced = kind != "plain" and refusal is None
    if namespaced:
        yield Finding("sandbox", True, "private namespaces: guests reach nothing of this machine")
    else:
        reason = "hypervisor.sandbox is plain" if refusal is None else f"no private namespaces: {refusal}"
        cure = "set hypervisor.sandbox to auto" if refusal is None else namespaces_remedy()
        message = f"{reason}; guests can reach services on this machine's loopback"
        yield Finding("sandbox", False, message, cure, fatal=kind == "namespaces", unsafe=True)
    if os.geteuid() == 0:
        yield _user(user)
        if not namespaced:
            yield _data_dir_access(data_dir, user)
    if namespaced:
        yield _egress()


def _refusal() -> str | None:
    try:
        done = subprocess.run(
            program("programs", "try_namespaces", []),
            capture_output=True,
            timeout=10,
            check=False,
            env=tool_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stdout.decode(errors="replace") or "it ended in an error"


def _user(name: str) -> Finding:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        if shutil.which("useradd", path=PATH):
            return Finding("user", True, f"{name} will be made when the agent starts")
        cure = f"make a system user {name} without a login"
        return Finding("user", False, f"no user {name}, and no useradd to make it", cure, fatal=True)
    if not is_mapped(uid):
        lack = f"root cannot become {name}: this container maps no such user"
        return Finding("user", False, lack, "run the agent as an ordinary user", fatal=True)
    return Finding("user", True, f"VMs run as {name}")


def _data_dir_access(data_dir: Path, name: str) -> Finding:
    """Without a mount namespace that user needs search permission on every folder above the data directory."""
    try:
        account = pwd.getpwnam(name)
        uid, gid = account.pw_uid, account.pw_gid
    except KeyError:
        uid = gid = -1
    folder = next(parent for parent in data_dir.absolute().parents if parent.exists())
    blocking = blocking_directory(folder, uid, {gid})
    if blocking is None:
        return Finding("access to the data directory", True, str(data_dir))
    cure = "start the agent with --data-dir /var/lib/twinshare"
    return Finding("access to the data directory", False, f"user {name} may not pass {blocking}", cure, fatal=True)


def _egress() -> Finding:
    if shutil.which("pasta", path=PATH) is None:
        lack = "no passt: guests reach nothing outside; port forwards work"
        return Finding("network for guests", False, lack, "apt-get install passt", package="passt")
    if not TUN.exists():
        return Finding("network for guests", False, f"{TUN} is missing", "run as root: modprobe tun")
    if os.geteuid() != 0 and not os.access(TUN, os.R_OK | os.W_OK):
        return Finding("network for guests", False, f"{TUN} may not be opened", f"run as root: chmod 666 {TUN}")
    return Finding("network for guests", True, "pasta")
