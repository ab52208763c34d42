"""Open an enclosure, or find the one that an earlier agent left with its guests still running."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ....protocols.errors import DeadlineExceeded, HypervisorDown
from ...background import open_background
from . import place
from .design import Identity
from .fence import Fence
from .keeping import Keeping
from .line import Process
from .outlet import Outlet
from .start import PATH
from .tools import Pipes, complete

_MIB = 1 << 20
_RELEASE = 10.0
_DIAL_PATIENCE, _FIRST_DIAL, _LAST_DIAL = 10.0, 0.02, 0.5
_TOOL_LIMITS = {"open_files": 256, "core": 0}


class Enclosure:
    """`path` names the same files inside and outside; `user` is None where everything runs as the agent's own user."""

    def __init__(self, keeping: Keeping, outlet: Outlet | None, fence: Fence | None) -> None:
        self._keeping, self._outlet, self._fence = keeping, outlet, fence
        self._spawned: list[Process] = []
        self.path = Path(keeping.record.path)
        self.user = keeping.identity.user
        self.kind = keeping.record.kind

    @property
    def problems(self) -> Sequence[str]:
        """A sentence for each thing that is missing here, as it is now."""
        later = [part.problem for part in (self._outlet, self._fence) if part is not None]
        return (*self._keeping.problems, *(problem for problem in later if problem))

    @property
    def connected(self) -> bool:
        """Whether guests have a way to the outside network."""
        return self._outlet is None or self._outlet.up()

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> Process:
        """Start a process that lives on after the agent, in its own session. Raises: OSError, HypervisorDown."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(stderr, flags, 0o600)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            process = await self._keeping.launch(
                argv, env=env, streams=(null, null, log), limits={"core": 0}, bound=False
            )
        finally:
            os.close(log)
            os.close(null)
        self._spawned.append(process)
        return process

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        memory: int = 1024,
        cpu: int = 600,
        file_size: int | None = None,
        output: int = 4 * _MIB,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a tool to its end. Memory in MiB, cpu in seconds, `output` bounds each stream in bytes.

        It dies with the call, however that ends, and also when the agent is killed.
        Raises: DeadlineExceeded, HypervisorDown; TooLarge past `output`; OSError when it cannot start.
        """
        limits = {**_TOOL_LIMITS, "address_space": memory * _MIB, "cpu_seconds": cpu}
        if file_size is not None:
            limits["file_size"] = file_size
        environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": str(self.path / "hypervisor")}
        with trio.move_on_after(timeout):
            async with Pipes() as pipes:
                process = await self._keeping.launch(
                    argv, env=environment, streams=pipes.far_ends, limits=limits, bound=True
                )
                pipes.close_far_ends()
                return await complete(process, pipes, argv, input or b"", output)
        raise DeadlineExceeded(f"{Path(argv[0]).name} did not finish within {timeout:g} s and was stopped.")

    async def dial(self, port: int, host: str = "127.0.0.1") -> trio.SocketStream:
        """Connect to a TCP port inside; `host` is an address of its loopback.

        QEMU's listeners queue a single connection; the kernel drops what comes beside it and tries again after a
        second. A new socket is tried much sooner: on a loopback an answer comes at once or never.
        Raises: OSError when nothing answers, HypervisorDown.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        pause = _FIRST_DIAL
        with trio.move_on_after(_DIAL_PATIENCE):
            while True:
                far = trio.socket.from_stdlib_socket(await self._keeping.far_socket(family))
                try:
                    with trio.move_on_after(pause):
                        await far.connect((host, port))
                        return trio.SocketStream(far)
                except BaseException:
                    far.close()
                    raise
                far.close()
                pause = min(pause * 2, _LAST_DIAL)
        raise TimeoutError(f"nothing answers on port {port} inside")

    def own(self, path: Path) -> None:
        """Give a file or a tree to the user inside. Blocks for as long as the tree is large."""
        identity = self._keeping.identity
        if identity.user is not None:
            place.give(path, identity.uid, identity.gid)

    def pids(self) -> frozenset[int]:
        """Processes inside, and the way out that speaks for them. Looks at every process of the machine."""
        return self._keeping.pids() | self._outlets()

    def carriers(self) -> frozenset[int]:
        """Those whose connections may carry a guest's words to this machine: never a local user's."""
        return self._outlets() if self.kind == "namespaces" else self._keeping.pids()

    def _outlets(self) -> frozenset[int]:
        outlet = self._outlet.process if self._outlet is not None else None
        return frozenset({outlet[0]} if outlet else ())

    def let_go(self) -> None:
        """Close all handles; what was spawned lives on."""
        for process in self._spawned:
            process.close()
        self._keeping.close()

    async def release(self) -> bool:
        """Take everything down unless a process lives inside; whether it is gone. Opening again makes it anew."""
        if not await self._keeping.end():
            return False
        if self._outlet is not None:
            self._outlet.close()
        place.release(self._keeping.record, self._keeping.data_dir)
        return True


@asynccontextmanager
async def open_enclosure(data_dir: Path, *, kind: str = "auto", user: str = "twinshare") -> AsyncIterator[Enclosure]:
    """`kind` is `auto`, `namespaces` or `plain`. On the way out it is released, unless guests run on in there.

    `user` is the system user of processes inside when the agent is root; anyone else's processes stay their own.
    Raises: HypervisorDown, with what to do about it.
    """
    data_dir = data_dir.absolute()  # noqa: ASYNC240 - asks the process alone
    identity = await trio.to_thread.run_sync(_identity, user)
    record = await trio.to_thread.run_sync(_prepare, data_dir, identity)
    log = os.open(data_dir / "enclosure.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        keeping = Keeping(data_dir, record, identity, log)
        try:
            await keeping.open(kind)
        except BaseException:
            place.release(record, data_dir)
            raise
        walled = record.kind == "namespaces"
        outlet, fence = (Outlet(keeping), Fence(keeping)) if walled else (None, None)
        enclosure = Enclosure(keeping, outlet, fence)
        try:
            async with open_background() as nursery:
                if outlet is not None and fence is not None:
                    for task in (fence.keep, outlet.keep, outlet.follow):
                        nursery.start_soon(task)
                yield enclosure
        finally:
            with trio.move_on_after(_RELEASE, shield=True):
                await enclosure.release()
            enclosure.let_go()
    finally:
        os.close(log)


def _identity(user: str) -> Identity:
    if os.geteuid() != 0:
        return Identity(None, os.geteuid(), os.getegid())
    account = place.account(user)
    if not place.is_mapped(account.pw_uid):
        raise HypervisorDown(
            f"Here root cannot become {user}, the user that virtual machines run as: this container maps no such user. "
            "Run the agent as an ordinary user."
        )
    return Identity(user, account.pw_uid, account.pw_gid, _kvm_group())


def _kvm_group() -> tuple[int, ...]:
    """The group that may use /dev/kvm, if there is one apart from root's."""
    try:
        status = Path("/dev/kvm").stat()
    except OSError:
        return ()
    return (status.st_gid,) if status.st_gid != 0 and status.st_mode & 0o060 == 0o060 else ()


def _prepare(data_dir: Path, identity: Identity) -> place.Record:
    try:
        record = place.claim(data_dir)
        if identity.user is not None:
            for part in place.PARTS:  # each may be a link that the owner made, to a larger disk
                os.chown(data_dir / part, identity.uid, identity.gid)
    except OSError as error:
        raise HypervisorDown(
            f"The data directory {data_dir} cannot be prepared for virtual machines: {error}."
        ) from error
    return record
