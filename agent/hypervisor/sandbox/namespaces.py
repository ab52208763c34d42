"""Moves the calling process into the sandbox: mounts, namespaces, identity, privileges. It has one thread.

Root makes the mounts with its own capabilities, becomes the unprivileged user and only then makes the user and network
namespaces, so that they belong to that user and an unprivileged `pasta` may join them. Any other user makes all
namespaces first and does the mounts with the capabilities that it has in them.
"""

# pathlib and dataclasses would cost every start 15 ms.
# ruff: noqa: PTH101, PTH103, PTH110, PTH112, PTH118, PTH120

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from . import routes

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x0002_0000, 0x0800_0000, 0x1000_0000, 0x4000_0000
_OURS = _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWNET
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_CHILD_SUBREAPER = 4, 24, 28, 36
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxSpec(NamedTuple):
    """What the process gets. `groups` are its supplementary groups; `parts` are the folders mounted below `path`.

    `hide` are folders that become empty and read-only, `scratch` those that become empty and writable. `blocked` are
    prefixes without a route. `join` is a process whose namespaces are entered instead of new ones. With `namespaces`
    false only identity and privileges change.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    namespaces: bool = True
    path: str = ""
    parts: Mapping[str, str] = {}
    hide: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    resolver: str | None = None
    blocked: tuple[str, ...] = ()
    no_new_privs: bool = True
    join: int | None = None


def enter(spec: SandboxSpec) -> None:
    """Move the calling process into the sandbox. Raises: OSError, naming the step, when the kernel refuses."""
    os.umask(0o022)  # what is made here is for the sandbox's user; the agent's own umask does not decide
    privileged = os.geteuid() == 0
    if not spec.namespaces:
        if privileged:
            become(spec.uid, spec.gid, spec.groups)
    elif spec.join is not None:
        _join(spec, privileged=privileged)
    elif privileged:
        _unshare(_CLONE_NEWNS, "a mount namespace")
        _mount_folders(spec)
        become(spec.uid, spec.gid, spec.groups)
        _unshare(_OURS, "user and network namespaces")
        _map_identity(spec)
        routes.bring_up_loopback()
        routes.update_blocked_routes(spec.blocked)
    else:
        _unshare(_OURS | _CLONE_NEWNS, "user, mount and network namespaces")
        _map_identity(spec)
        _mount_folders(spec)
        routes.bring_up_loopback()
        routes.update_blocked_routes(spec.blocked)
    os.umask(0o077)
    drop_capabilities()
    if spec.no_new_privs:
        set_no_new_privs()


def become_subreaper() -> None:
    """Become the parent of the orphans among the descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become(uid: int, gid: int, groups: Iterable[int] = ()) -> None:
    """Turn root into another user; its capabilities stay until `drop_capabilities`."""
    with contextlib.suppress(OSError):  # refused in some containers: then capabilities go with the identity
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # A change of identity hides /proc/self from its new owner, who has to write the identity map there.
    _prctl(_PR_SET_DUMPABLE, 1)


def set_no_new_privs() -> None:
    """Have set-user-ID programs run as the user who starts them, for this process and its descendants."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Drop every capability of this process and its descendants."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last one, or not allowed to shrink the bounding set
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "dropping capabilities")


def enter_network(pid: int) -> None:
    """Enter a process's user and network namespaces, as root or as the user who owns them."""
    _enter(pid, _CLONE_NEWUSER | _CLONE_NEWNET)


def mount_private_tun(directory: str) -> None:
    """Mount a tun device that any user may open, visible to this process (root) and its children alone."""
    _unshare(_CLONE_NEWNS, "a mount namespace")
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", directory, "tmpfs", _MS_NOSUID, "mode=755,size=16k")
    node = f"{directory}/tun"
    os.mknod(node, 0o020666, os.makedev(10, 200))
    os.chmod(node, 0o666)  # noqa: S103 - a device for everyone, as distributions ship it
    _mount(node, "/dev/net/tun", None, _MS_BIND)


def _mount_folders(spec: SandboxSpec) -> None:
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    sources = {name: os.open(folder, os.O_PATH | os.O_DIRECTORY) for name, folder in spec.parts.items()}
    empty = [folder for folder in spec.hide if os.path.isdir(folder)]
    for folder in empty:
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    for folder in spec.scratch:
        os.makedirs(folder, exist_ok=True)
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=64m")
    for name, source in sources.items():
        inside = f"{spec.path}/{name}"
        os.makedirs(inside, 0o755)
        _mount(f"/proc/self/fd/{source}", inside, None, _MS_BIND)
        os.close(source)
    _mount_resolver(spec)
    for folder in empty:
        _mount(None, folder, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _mount_resolver(spec: SandboxSpec) -> None:
    """Mount a resolv.conf: QEMU's DHCP offers its first name server; the file may be a link into a hidden folder."""
    target = os.path.realpath("/etc/resolv.conf")
    if spec.resolver is None:
        return
    text = f"nameserver {spec.resolver}\n"
    if not os.path.exists(target):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            _write(target, text)
        return
    replacement = os.path.join(os.path.dirname(spec.path), "resolv.conf")
    _write(replacement, text)
    _mount(replacement, target, None, _MS_BIND)


def _join(spec: SandboxSpec, *, privileged: bool) -> None:
    pid = spec.join or 0
    if privileged:
        become(spec.uid, spec.gid, spec.groups)
    _enter(pid, _OURS | _CLONE_NEWNS)


def _enter(pid: int, namespaces: int) -> None:
    pidfd = os.pidfd_open(pid)
    _check(_libc.setns(pidfd, namespaces), f"entering the namespaces of process {pid}")
    os.close(pidfd)


def _map_identity(spec: SandboxSpec) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{spec.uid} {spec.uid} 1")
    _write("/proc/self/gid_map", f"{spec.gid} {spec.gid} 1")


def _unshare(flags: int, what: str) -> None:
    _check(_libc.unshare(flags), f"making {what}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word and os.fsencode(word) for word in (source, target, kind, options)]
    status = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(status, f"mounting on {target}")


def _prctl(option: int, *arguments: int) -> None:
    padded: list[Any] = [ctypes.c_ulong(number) for number in (*arguments, 0, 0, 0, 0)][:4]
    _check(_libc.prctl(option, *padded), f"prctl {option}")


def _write(path: str, text: str) -> None:
    """Write without a codec: codecs are imported at first use, and the interpreter's files may be hidden by now."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(number, text.encode())
    finally:
        os.close(number)


def _check(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
