"""Takes out of a guest's disk what makes it one machine among others: its machine id and its SSH host keys.

The disk is a guest's and nobody vouches for it: its file system is touched by the tools of ext alone, in the sandbox,
and on a copy of the partition, for a journal that was not played back is played back first. What the tools did is
looked at before it is believed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from ...protocols.errors import InvalidRequest, Unsupported
from ..files import Own, disk_errors_named, write_all
from .chunker import extents
from .convert import RunTool
from .partitions import Part, parts_of
from .scratch import Scratch, ScratchFolder

TIMEOUT = 600.0
MACHINE_ID = "/etc/machine-id"
DBUS_ID = "/var/lib/dbus/machine-id"
SSH = "/etc/ssh"
# Where the tools are: the path of a user that is not root often lacks them.
_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
_STEP = 1 << 20
_KEY = re.compile(r"ssh_host_[A-Za-z0-9_.-]{1,100}")
# A line of `ls -p`: inode, mode, user, group, name, size.
_LINE = re.compile(r"/(\d+)/(\d+)/\d+/\d+/(.*)/(\d*)/")
_MAX_KEY = 1 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    regular: bool


def require_tools() -> None:
    """Raises: Unsupported, with what to install."""
    if not all(shutil.which(name, path=_PATH) for name in ("debugfs", "e2fsck")):
        raise Unsupported("a machine's identity is taken out with e2fsprogs; run: apt-get install e2fsprogs")


async def reset_identity(disk: Scratch, size: int, *, run_tool: RunTool, scratch: ScratchFolder, own: Own) -> None:
    """Clear the identity in every ext file system of a raw disk that has an /etc.

    Raises: InvalidRequest when there is none, or one cannot be changed; InsufficientResources.
    """
    parts = await trio.to_thread.run_sync(parts_of, disk.fd, size)
    done = 0
    for part in parts:
        if part.system == "ext":
            async with scratch.open() as copy, scratch.open() as script:
                done += await _Reset(disk, part, copy, script, run_tool, own).run()
    if not done:
        found = ", ".join(sorted({part.system for part in parts} - {"", "ext"}))
        raise InvalidRequest(
            "the identity cannot be reset: no ext2, ext3 or ext4 file system with an /etc is on the disk"
            + (f" (it has {found})" if found else ""),
            path="reset_identity",
        )


class _Reset:
    """One file system, in a file of its own."""

    def __init__(self, disk: Scratch, part: Part, copy: Scratch, script: Scratch, run_tool: RunTool, own: Own) -> None:
        self._disk, self._part, self._copy, self._script = disk, part, copy, script
        self._run_tool, self._own = run_tool, own

    async def run(self) -> bool:
        """Whether it was a system's root."""
        with disk_errors_named("the image"):
            await trio.to_thread.run_sync(self._take)
        self._own(self._copy.fd)
        self._own(self._script.fd)
        done = await self._run_tool(["e2fsck", "-p", "-E", "journal_only", str(self._copy.path)], timeout=TIMEOUT)
        if done.returncode not in (0, 1):
            raise _unchanged("its journal cannot be played back")
        if not await self._list("/etc"):
            return False
        commands = await self._commands()
        if commands:
            await trio.to_thread.run_sync(write_all, self._script.fd, memoryview("\n".join(commands).encode()), 0)
            await self._debugfs("-w", "-f", str(self._script.path))
            if await self._commands():
                raise _unchanged("it stays as it was")
        with disk_errors_named("the image"):
            await trio.to_thread.run_sync(self._give_back)
        return True

    async def _commands(self) -> list[str]:
        """What is still to be done, in the words of debugfs."""
        found = [one for one in await self._list("/etc") if one.name == "machine-id" and one.regular and one.size]
        commands = [f"{verb} {MACHINE_ID} {rest}" for verb, rest in (("punch", "0"), ("sif", "size 0")) if found]
        if any(one.name == "machine-id" and one.regular for one in await self._list("/var/lib/dbus")):
            commands.append(f"rm {DBUS_ID}")
        for one in await self._list(SSH):
            if _KEY.fullmatch(one.name) and one.regular:
                # A removed file's blocks keep their bytes: a private key must not lie in the image's free space.
                blocks = -(-min(one.size, _MAX_KEY) // await trio.to_thread.run_sync(self._block_size))
                commands += [f"zap_block -f {SSH}/{one.name} {block}" for block in range(blocks)]
                commands.append(f"rm {SSH}/{one.name}")
        return commands

    async def _list(self, folder: str) -> list[_Entry]:
        said = await self._debugfs("-R", f"ls -p {folder}")
        return [
            _Entry(match[3], int(match[4] or 0), match[2].startswith("10"))
            for line in said.splitlines()
            if (match := _LINE.fullmatch(line))
        ]

    async def _debugfs(self, *arguments: str) -> str:
        done = await self._run_tool(["debugfs", *arguments, str(self._copy.path)], timeout=TIMEOUT)
        if done.returncode:
            raise _unchanged("its file system cannot be read")
        return done.stdout.decode(errors="replace")

    def _block_size(self) -> int:
        power = int.from_bytes(os.pread(self._copy.fd, 4, 1024 + 24), "little")
        return 1024 << min(power, 6)

    def _take(self) -> None:
        """Copy the partition, holes as holes."""
        os.ftruncate(self._copy.fd, self._part.length)
        for place, length in self._pieces(self._disk.fd, self._part.offset):
            data = os.pread(self._disk.fd, length, self._part.offset + place)
            write_all(self._copy.fd, memoryview(data), place)

    def _give_back(self) -> None:
        """Write what has changed to the disk."""
        if os.fstat(self._copy.fd).st_size != self._part.length:
            raise _unchanged("its file system is larger than its partition")
        pieces = {*self._pieces(self._copy.fd, 0), *self._pieces(self._disk.fd, self._part.offset)}
        for place, length in sorted(pieces):
            new = os.pread(self._copy.fd, length, place)
            if new != os.pread(self._disk.fd, length, self._part.offset + place):
                write_all(self._disk.fd, memoryview(new), self._part.offset + place)

    def _pieces(self, fd: int, start: int) -> Iterator[tuple[int, int]]:
        """Where the partition, which begins at `start` in the file, holds data: (place in it, length), a MiB each."""
        last = -1
        for begin, end in extents(fd, start + self._part.length):
            for number in range(max((begin - start) // _STEP, last + 1), -(-(end - start) // _STEP)):
                trio.from_thread.check_cancelled()
                last = number
                yield number * _STEP, min(_STEP, self._part.length - number * _STEP)


def _unchanged(why: str) -> InvalidRequest:
    return InvalidRequest(f"the identity in the guest's disk cannot be reset: {why}", path="reset_identity")
