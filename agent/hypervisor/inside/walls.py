"""Shut the calling process in: mounts, namespaces, identity, privileges. It has one thread, and there is no way back.

Two ways lead to the same place. Root makes the mounts with its own power, becomes the unprivileged user and only then
makes the user and network namespaces, so that they belong to that user and an unprivileged `pasta` may join them.
Anyone else makes all namespaces first and does the mounts by the power that holds inside them.
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

from . import network

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x0002_0000, 0x0800_0000, 0x1000_0000, 0x4000_0000
_OURS = _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWNET
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_CHILD_SUBREAPER = 4, 24, 28, 36
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


class Walls(NamedTuple):
    """What the inside is like. `groups` are the only extra ones; `parts` are the folders that appear below `path`.

    `hide` are folders that become empty inside, `scratch` those that are empty and writable. `fence` are prefixes that
    the network inside cannot reach. `join` is a process whose namespaces are taken instead of new ones. With
    `namespaces` false only identity and privileges change.
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
    fence: tuple[str, ...] = ()
    no_new_privs: bool = True
    join: int | None = None


def build(walls: Walls) -> None:
    """Raises: OSError, naming the step, when the kernel refuses."""
    privileged = os.geteuid() == 0
    if not walls.namespaces:
        if privileged:
            become(walls.uid, walls.gid, walls.groups)
    elif walls.join is not None:
        _join(walls, privileged=privileged)
    elif privileged:
        _unshare(_CLONE_NEWNS, "a mount namespace")
        _furnish(walls)
        become(walls.uid, walls.gid, walls.groups)
        _unshare(_OURS, "user and network namespaces")
        _map_identity(walls)
        network.raise_loopback()
        network.fence(walls.fence)
    else:
        _unshare(_OURS | _CLONE_NEWNS, "user, mount and network namespaces")
        _map_identity(walls)
        _furnish(walls)
        network.raise_loopback()
        network.fence(walls.fence)
    os.umask(0o077)
    drop_power()
    if walls.no_new_privs:
        refuse_new_privileges()


def adopt_orphans() -> None:
    """Become the parent of what the processes below leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become(uid: int, gid: int, groups: Iterable[int] = ()) -> None:
    """Root turns into another user; its capabilities stay until `drop_power`."""
    with contextlib.suppress(OSError):  # refused in poor containers: then they go with the identity
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # A change of identity hides /proc/self from its new owner, who has to write the identity map there.
    _prctl(_PR_SET_DUMPABLE, 1)


def refuse_new_privileges() -> None:
    """Have programs with set-user-ID run as what they are started by, from here on."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_power() -> None:
    """Give up every capability, for this process and all that come after it."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last one, or no power to shrink the bound
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "dropping capabilities")


def enter_network(pid: int) -> None:
    """With power over it: as root, or as the user to whom the namespaces belong."""
    _enter(pid, _CLONE_NEWUSER | _CLONE_NEWNET)


def private_tun(directory: str) -> None:
    """Root gives itself a tun device that any user may open, visible to this process and its children alone."""
    _unshare(_CLONE_NEWNS, "a mount namespace")
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", directory, "tmpfs", _MS_NOSUID, "mode=755,size=16k")
    node = f"{directory}/tun"
    os.mknod(node, 0o020666, os.makedev(10, 200))
    os.chmod(node, 0o666)  # noqa: S103 - a device for everyone, as distributions ship it
    _mount(node, "/dev/net/tun", None, _MS_BIND)


def _furnish(walls: Walls) -> None:
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    sources = {name: os.open(folder, os.O_PATH | os.O_DIRECTORY) for name, folder in walls.parts.items()}
    empty = [folder for folder in walls.hide if os.path.isdir(folder)]
    for folder in empty:
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    for folder in walls.scratch:
        os.makedirs(folder, exist_ok=True)
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=64m")
    for name, source in sources.items():
        inside = f"{walls.path}/{name}"
        os.makedirs(inside, 0o755)
        _mount(f"/proc/self/fd/{source}", inside, None, _MS_BIND)
        os.close(source)
    _place_resolver(walls)
    for folder in empty:
        _mount(None, folder, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _place_resolver(walls: Walls) -> None:
    """QEMU tells guests the first name server of /etc/resolv.conf, often a link into a folder that is hidden."""
    target = os.path.realpath("/etc/resolv.conf")
    if walls.resolver is None:
        return
    text = f"nameserver {walls.resolver}\n"
    if not os.path.exists(target):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            _write(target, text)
        return
    replacement = os.path.join(os.path.dirname(walls.path), "resolv.conf")
    _write(replacement, text)
    _mount(replacement, target, None, _MS_BIND)


def _join(walls: Walls, *, privileged: bool) -> None:
    pid = walls.join or 0
    if privileged:
        become(walls.uid, walls.gid, walls.groups)
    _enter(pid, _OURS | _CLONE_NEWNS)


def _enter(pid: int, namespaces: int) -> None:
    pidfd = os.pidfd_open(pid)
    _check(_libc.setns(pidfd, namespaces), f"entering the namespaces of process {pid}")
    os.close(pidfd)


def _map_identity(walls: Walls) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{walls.uid} {walls.uid} 1")
    _write("/proc/self/gid_map", f"{walls.gid} {walls.gid} 1")


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
    """Without a codec: those are imported when first used, and the interpreter's own files may be hidden by now."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(number, text.encode())
    finally:
        os.close(number)


def _check(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
